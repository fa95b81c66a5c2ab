"""Command line: ``python -m helios_core generate``, ``store`` and ``tiny``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import HeliosError
from ..networks.parallel.team import Team
from ..pipeline import HeliosPipeline
from ..take.film import MOST_CHUNKS, chunk_count
from ..take.headless import write_film
from ..take.progress import TerminalBar
from ..take.store import CHUNK_SUFFIX, FOLDER_NAME, ChunkStore
from ..take.take import Take, name_for
from ..variants import CHUNK_FRAMES, DEFAULT, VARIANTS
from ..video.segments import VideoSettings
from . import bench, convert, download, drift, farm, live
from .film_options import (
    add_end_options,
    add_film_options,
    check_film_options,
    end_of,
    no_empty_store,
    request_of,
    with_model,
)
from .films import load_pipeline, loading, sampling, together
from .tiny import write_tiny

LONGEST_SECONDS = MOST_CHUNKS * CHUNK_FRAMES  # at one frame a second


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; see :func:`run_command`."""
    options = _parser().parse_args(arguments)
    if options.run is not generate:
        options.run = partial(_by_one_process, options.run)
    return run_command(options)


def _by_one_process(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> None:
    """``run``, which several processes would do several times, into the same files.

    Raises:
        HeliosError: there are several.
    """
    if Team.announced().size > 1:
        raise HeliosError("only generate is for several processes; start this command without torchrun.")
    run(options)


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
        with_model(options, lambda model: _film(options, model, team), team.leads)
    except HeliosError:
        if team.leads:
            raise
        team.outlast_first()  # it says why, and torchrun ends all processes once one has ended
        sys.stderr.flush()
        os._exit(2)  # without gloo's threads, whose end is sometimes std::terminate where a process is lost
    team.leave()


def _film(options: argparse.Namespace, model: Path, team: Team) -> None:
    check_film_options(options)
    if not 0 < options.seconds <= LONGEST_SECONDS:
        raise HeliosError(f"--seconds {options.seconds} must be a length above 0, at most {LONGEST_SECONDS}.")
    frames = math.ceil(options.seconds * options.fps)
    if not team.leads:
        _pipeline(options, model, team).follow()
        return
    end = end_of(options)
    with no_empty_store(options) as store:
        _render(options, model, store, frames, end, team)
    count = chunk_count(frames) * CHUNK_FRAMES
    print(f"{options.output}: {count} frames, {options.fps} fps, {count / options.fps:.2f} s")


def _render(
    options: argparse.Namespace, model: Path, store: ChunkStore, frames: int, end: dict[str, Any], team: Team
) -> None:
    """Keeps finished chunks in ``store``, and while rendering a playable file of them beside the output."""
    settings = VideoSettings(options.width, options.height, options.fps, crf=options.crf)
    shown = {name: getattr(options, name) for name in ("prompt", "negative_prompt", "seed", "width", "height")}
    take = Take(store, options.take or name_for(options.output.stem), shown, resume=not options.no_resume)
    pipeline = _pipeline(options, model, team)
    with TerminalBar(pipeline.steps_per_chunk(frames, **sampling(options.steps)), options.fps) as bar:
        request = {"prompt": options.prompt, "num_frames": frames, "on_step": bar.on_step, **end}
        chunks = pipeline.stream(**request_of(options), **request, output_type="latent", take=take)
        write_film(pipeline, chunks, take, options.output, settings, bar)


def _pipeline(options: argparse.Namespace, model: Path, team: Team) -> HeliosPipeline:
    return load_pipeline(
        model,
        **loading(options),
        **together(team.size, options.cfg_parallel, options.decode_parallel),
    )


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
    add_film_options(command)
    add_end_options(command)
    command.add_argument("--seconds", type=float, default=5.0, help="length, rounded up to whole chunks of 33 frames")
    command.add_argument(
        "--cfg-parallel", action="store_true", help="under torchrun, half of the processes take the negative prompt"
    )
    command.add_argument(
        "--decode-parallel", action="store_true", help="under torchrun, the last process decodes while others sample"
    )
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
    live.add_command(commands)
    return parser
