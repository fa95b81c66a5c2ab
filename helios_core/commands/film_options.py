"""The options of the commands that make one film, and what becomes of them."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import HeliosError, shortened
from ..samplers import EndFrame
from ..samplers.end_frame import check_end
from ..take.anti_drift import SETTINGS, AntiDrift
from ..take.reference import read_picture
from ..take.seed_changes import MAX_SEED
from ..take.store import FOLDER_NAME, ChunkStore
from ..variants import DEFAULT, RELEASED_SIZE
from ..video.segments import VideoSettings
from .embedded import embedded
from .films import add_loading, sampling
from .tiny import write_tiny


def add_film_options(command: argparse.ArgumentParser) -> None:
    """All but the film's length."""
    command.add_argument("--model", type=Path, help="released Helios folder (default: a small one of the pack)")
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt")
    command.add_argument("--output", type=Path, default=Path("helios.mp4"))
    command.add_argument("--width", type=int, help="pixels, divisible by 64 (default: the model's, 640)")
    command.add_argument("--height", type=int, help="pixels, divisible by 64 (default: the model's, 384)")
    command.add_argument("--fps", type=int, default=24)
    command.add_argument("--crf", type=int, default=18, help="h264 quality, lower is better")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--seed-changes", default="", metavar="'7: 123'", help="another seed from a chunk on")
    command.add_argument(
        "--anti-drift", type=float, nargs="*", metavar="N", help="hold a long film: momentum, threshold, strength"
    )
    command.add_argument("--steps", type=int, nargs="+", help="steps per stage (default: the variant's)")
    command.add_argument("--guidance", type=float, help="guidance scale (default: the variant's)")
    add_loading(command)
    command.add_argument("--take", help="name in the list of takes (default: the output's)")
    command.add_argument("--store", type=Path, help=f"folder of chunks (default: {FOLDER_NAME} beside --output)")
    command.add_argument("--no-resume", action="store_true", help="make every chunk anew")


def with_model(options: argparse.Namespace, run: Callable[[Path], None], speaks: bool = True) -> None:
    """Calls ``run`` with the model, the pack's own where none is given, once width and height are settled."""
    own = None if options.model else embedded(DEFAULT.name)
    width, height = own.size if own else RELEASED_SIZE
    options.width, options.height = options.width or width, options.height or height
    if own is None:
        run(options.model)
        return
    if speaks:
        print(f"No --model given: using {own.name}, {own.makes}, at {width}x{height}.")
    with tempfile.TemporaryDirectory() as folder:
        run(own.folder or write_tiny(Path(folder) / own.name))


def check_film_options(options: argparse.Namespace) -> None:
    """Refuses what is wrong before the model loads.

    Raises:
        HeliosError: no size, frame rate, quality or seed of a film.
    """
    VideoSettings(options.width, options.height, options.fps, crf=options.crf)
    if not 0 <= options.seed <= MAX_SEED:
        raise HeliosError(f"--seed {shortened(options.seed)} must be 0 to {MAX_SEED}.")


@contextlib.contextmanager
def no_empty_store(options: argparse.Namespace) -> Iterator[ChunkStore]:
    """The store; where a film was refused before there was a chunk, no empty folder stays."""
    store = ChunkStore(options.store or options.output.parent / FOLDER_NAME)
    try:
        yield store
    except BaseException:
        with contextlib.suppress(OSError):
            store.folder.rmdir()
        raise


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's keywords, but for prompt and length."""
    return {
        "negative_prompt": options.negative_prompt,
        "width": options.width,
        "height": options.height,
        **sampling(options.steps),
        "guidance_scale": options.guidance,
        "generator": torch.Generator("cpu").manual_seed(options.seed),
        "seed_changes": options.seed_changes,
        "anti_drift": None if options.anti_drift is None else _anti_drift(options.anti_drift),
    }


def add_end_options(command: argparse.ArgumentParser) -> None:
    """Those of a film whose length is known."""
    command.add_argument("--end-image", type=Path, metavar="FILE", help="a picture that the film's end is guided to")
    command.add_argument(
        "--end-chunks", type=int, default=EndFrame.guided_chunks, help="how many of the last chunks are guided"
    )
    command.add_argument(
        "--end-strength", type=float, default=EndFrame.strength, help="the pull on the last frame, 0 to 1"
    )


def end_of(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's keywords of an end frame.

    Raises:
        HeliosError: no picture, or a setting out of its range.
    """
    check_end(options.end_strength, options.end_chunks)
    image = None if options.end_image is None else read_picture("--end-image", options.end_image)
    return {"end_image": image, "end_chunks": options.end_chunks, "end_strength": options.end_strength}


def _anti_drift(settings: Sequence[float]) -> AntiDrift:
    if len(settings) not in (0, len(SETTINGS)):
        raise HeliosError(f"--anti-drift takes no number or three ({', '.join(SETTINGS)}), not {len(settings)}.")
    return AntiDrift(settings[0], settings[1], settings[2]) if settings else AntiDrift()
