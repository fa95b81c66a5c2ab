"""Command line: ``python -m helios_core drift``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import HeliosError
from ..take.store import write_atomically
from ..variants import CHUNK_FRAMES
from ..video.drift.clip import ScoreModels
from ..video.drift.plot import save_picture
from ..video.drift.report import report_file


def add_command(commands: Any) -> None:
    """Adds ``drift`` to the command line's subparsers."""
    command = commands.add_parser("drift", help="measure how the colour, sharpness and motion of videos change")
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help="video files")
    command.add_argument("--chunk-frames", type=int, default=CHUNK_FRAMES, help="frames between two borders")
    command.add_argument(
        "--prompt-changes", type=int, nargs="+", default=(), metavar="CHUNK", help="marked in the plot"
    )
    command.add_argument("--plot", action="store_true", help="also write a plot beside each file, NAME.drift.png")
    command.add_argument("--json", action="store_true", help="also write the figures beside each file, NAME.drift.json")
    add_clip_vision(command)
    command.add_argument("--prompt", help="the films' prompt, for the semantic score")
    command.set_defaults(run=_run)


def add_clip_vision(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--clip-vision",
        type=Path,
        metavar="FOLDER",
        help="a released CLIP ViT-L/14 folder and LAION's head are in it: aesthetic and semantic scores too; the "
        "semantic one is ViCLIP's where its file is there",
    )


def _run(options: argparse.Namespace) -> None:
    scores = ScoreModels.read(options.clip_vision).of(options.prompt)
    for file in options.files:
        report = report_file(file, file.name, options.chunk_frames, options.prompt_changes, scores)
        print(report.text())
        if options.plot:
            save_picture(report, file.with_name(f"{file.stem}.drift.png"))
        if options.json:
            target = file.with_name(f"{file.stem}.drift.json")
            try:
                write_atomically(target, report.json().encode(), durable=False)
            except OSError as error:
                raise HeliosError(f"{target} cannot be written ({error.strerror}); copy the video elsewhere.") from None
