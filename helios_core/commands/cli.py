"""Command line: ``python -m helios_core generate``, ``store`` and ``tiny``."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import HeliosError, shortened
from ..networks.parallel.team import Team
from ..pipeline import HeliosPipeline
from ..take.anti_drift import SETTINGS, AntiDrift
from ..take.film import MOST_CHUNKS, chunk_count
from ..take.progress import TerminalBar
from ..take.seed_changes import MAX_SEED
from ..take.store import CHUNK_SUFFIX, FOLDER_NAME, ChunkStore
from ..take.take import Take, name_for
from ..variants import CHUNK_FRAMES, DEFAULT, RELEASED_SIZE, VARIANTS
from ..video.segments import VideoSettings
from . import bench, convert, download, drift, farm
from .embedded import embedded
from .films import add_loading, load_pipeline, loading, sampling, write_film
from .tiny import write_tiny

LONGEST_SECONDS = MOST_CHUNKS * CHUNK_FRAMES  # at one frame a second


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; see :func:`run_command`."""
    return run_command(_parser().parse_args(arguments))


def run_command(options: argparse.Namespace) -> int:
    """Calls ``options.run``; a HeliosError becomes one line on standard error and exit code 2."""
    try:
        options.run(options)
    except HeliosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def generate(options: argparse.Namespace) -> None:
    """Writes a clip chunk by chunk; process 0 of several alone writes and speaks."""
    team = Team.from_environment()
    try:
        _generate(options, team)
    except HeliosError:
        if team.leads:
            raise
        team.outlast_first()  # it says why, and torchrun ends all processes once one has ended
        sys.exit(2)
    team.leave()


def _generate(options: argparse.Namespace, team: Team) -> None:
    own = None if options.model else embedded(DEFAULT.name)
    width, height = own.size if own else RELEASED_SIZE
    options.width, options.height = options.width or width, options.height or height
    if own is None:
        _film(options, options.model, team)
        return
    if team.leads:
        print(f"No --model given: using {own.name}, {own.makes}, at {width}x{height}.")
    with tempfile.TemporaryDirectory() as folder:
        _film(options, own.folder or write_tiny(Path(folder) / own.name), team)


def _film(options: argparse.Namespace, model: Path, team: Team) -> None:
    VideoSettings(options.width, options.height, options.fps, crf=options.crf)  # refused before the model loads
    if not 0 < options.seconds <= LONGEST_SECONDS:
        raise HeliosError(f"--seconds {options.seconds} must be a length above 0, at most {LONGEST_SECONDS}.")
    if not 0 <= options.seed <= MAX_SEED:
        raise HeliosError(f"--seed {shortened(options.seed)} must be 0 to {MAX_SEED}.")
    frames = math.ceil(options.seconds * options.fps)
    if not team.leads:
        _pipeline(options, model, team).follow()
        return
    store = ChunkStore(options.store or options.output.parent / FOLDER_NAME)
    try:
        _render(options, model, store, frames, team)
    except BaseException:
        with contextlib.suppress(OSError):  # refused before there was a chunk: no empty folder stays
            store.folder.rmdir()
        raise
    count = chunk_count(frames) * CHUNK_FRAMES
    print(f"{options.output}: {count} frames, {options.fps} fps, {count / options.fps:.2f} s")


def _render(options: argparse.Namespace, model: Path, store: ChunkStore, frames: int, team: Team) -> None:
    """Keeps finished chunks in ``store``, and while rendering a playable file of them beside the output."""
    settings = VideoSettings(options.width, options.height, options.fps, crf=options.crf)
    shown = {name: getattr(options, name) for name in ("prompt", "negative_prompt", "seed", "width", "height")}
    take = Take(store, options.take or name_for(options.output.stem), shown, resume=not options.no_resume)
    pipeline = _pipeline(options, model, team)
    with TerminalBar(pipeline.steps_per_chunk(frames, **sampling(options.steps)), options.fps) as bar:
        write_film(pipeline, {**_request(options, frames), "on_step": bar.on_step}, take, options.output, settings, bar)


def _pipeline(options: argparse.Namespace, model: Path, team: Team) -> HeliosPipeline:
    return load_pipeline(
        model,
        **loading(options),
        context_parallel=max(1, team.size // (2 if options.cfg_parallel else 1)),
        cfg_parallel=options.cfg_parallel,
    )


def _request(options: argparse.Namespace, frames: int) -> dict[str, Any]:
    """The pipeline's keywords."""
    return {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "width": options.width,
        "height": options.height,
        "num_frames": frames,
        **sampling(options.steps),
        "guidance_scale": options.guidance,
        "generator": torch.Generator("cpu").manual_seed(options.seed),
        "seed_changes": options.seed_changes,
        "anti_drift": None if options.anti_drift is None else _anti_drift(options.anti_drift),
    }


def _anti_drift(settings: Sequence[float]) -> AntiDrift:
    if len(settings) not in (0, len(SETTINGS)):
        raise HeliosError(f"--anti-drift takes no number or three ({', '.join(SETTINGS)}), not {len(settings)}.")
    return AntiDrift(settings[0], settings[1], settings[2]) if settings else AntiDrift()


def _store(options: argparse.Namespace) -> None:
    """Shows what a store holds, or empties it."""
    store = ChunkStore(options.folder)
    if not options.folder.is_dir():
        raise HeliosError(f"--folder {options.folder} does not exist; give a {FOLDER_NAME} folder.")
    if options.clear:
        print(f"{options.folder}: {_gib(store.clear())} freed")
        return
    files = store.files()
    chunks = sum(path.name.endswith(CHUNK_SUFFIX) for path, _ in files)
    print(f"{options.folder}: {chunks} chunks, {_gib(store.size())}")
    for take in store.manifests():
        done = sum(chunk["in_video"] for chunk in take["chunks"])
        print(f"  {take['take']}: {done} chunks in {take['video']}, {take['status']}, {take['updated']}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _tiny(options: argparse.Namespace) -> None:
    print(write_tiny(options.output, options.variant))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helios_core", description="Helios video generation")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("generate", help="make a video from a prompt")
    command.add_argument("--model", type=Path, help="released Helios folder (default: a small one of the pack)")
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt")
    command.add_argument("--seconds", type=float, default=5.0, help="length, rounded up to whole chunks of 33 frames")
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
    command.add_argument(
        "--cfg-parallel", action="store_true", help="under torchrun, half of the processes take the negative prompt"
    )
    command.add_argument("--take", help="name in the list of takes (default: the output's)")
    command.add_argument("--store", type=Path, help=f"folder of chunks (default: {FOLDER_NAME} beside --output)")
    command.add_argument("--no-resume", action="store_true", help="make every chunk anew")
    command.set_defaults(run=generate)

    command = commands.add_parser("store", help="show or empty a folder of finished chunks")
    command.add_argument("--folder", type=Path, default=Path(FOLDER_NAME))
    command.add_argument("--clear", action="store_true", help="remove every chunk in it")
    command.set_defaults(run=_store)

    command = commands.add_parser("tiny", help="write helios-tiny, random weights in the released layout")
    command.add_argument("--variant", choices=VARIANTS, default=DEFAULT.name)
    command.add_argument("--output", type=Path, required=True)
    command.set_defaults(run=_tiny)
    convert.add_command(commands)
    download.add_command(commands)
    drift.add_command(commands)
    bench.add_command(commands)
    farm.add_command(commands)
    return parser
