"""``python -m helios_core live``: directs a film from standard input while it renders."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import HeliosError
from ..take.directions import Direction
from ..take.director import TakeEndedError
from ..take.film import MOST_CHUNKS
from ..take.live import LiveFilm
from .film_options import add_film_options, check_film_options, no_empty_store, request_of, with_model
from .films import load_pipeline, loading

HELP = """A line is the prompt from the next chunk on. Other directions:
  /at 7 TEXT      a prompt from chunk 7 on
  /undo           takes back what no chunk has used yet
  /roll 5 [SEED]  makes chunk 5 and what follows again, with another seed
  /anchor FILE    a picture is the anchor from the next chunk on
  /pause, /continue, /stop"""


def add_command(commands: Any) -> None:
    command = commands.add_parser(
        "live",
        help="direct a video while it is made",
        description="Renders a film and reads directions from standard input.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_film_options(command)
    command.add_argument(
        "--max-chunks", type=int, default=0, help="where it ends unless stopped before (default: at /stop or Ctrl-D)"
    )
    command.add_argument("--blend", type=int, default=0, help="chunks over which a new prompt takes over")
    command.set_defaults(run=lambda options: with_model(options, lambda model: _live(options, model)))


def _live(options: argparse.Namespace, model: Path) -> None:
    check_film_options(options)
    if not 0 <= options.max_chunks <= MOST_CHUNKS:
        raise HeliosError(f"--max-chunks {options.max_chunks} must be 0 (until it is stopped) to {MOST_CHUNKS}.")
    with no_empty_store(options) as store:
        film = load_pipeline(model, **loading(options)).live(
            options.prompt,
            options.output,
            max_chunks=options.max_chunks,
            blend=options.blend,
            fps=options.fps,
            crf=options.crf,
            store=store.folder,
            take=options.take or "",
            resume=not options.no_resume,
            tell=print,
            **request_of(options),
        )
        with film:
            print(HELP, file=sys.stderr)
            reader = threading.Thread(target=_follow, args=(film, sys.stdin, not options.max_chunks), daemon=True)
            reader.start()
            film.wait()
    print(f"{film.path}\n{film.schedule}")
    if film.seed_changes:
        print(f"--seed-changes '{film.seed_changes}'")


def _follow(film: LiveFilm, lines: Iterable[str], stop_at_end: bool) -> None:
    """Directs ``film`` by ``lines``, and stops it behind the last one."""
    try:
        _direct(film, lines)
    finally:
        if stop_at_end:
            film.director.stop_now()


def _direct(film: LiveFilm, lines: Iterable[str]) -> None:
    for line in lines:
        if not line.strip():
            continue
        try:
            said = film.direct(read_line(line))
        except TakeEndedError:
            return
        except HeliosError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        assert said.chunk is not None
        print(f"{said.do}: chunk {said.chunk}, at {film.second_of(said.chunk):.1f} s")


def read_line(line: str) -> Direction:
    """A line of standard input as a direction.

    Raises:
        HeliosError: a command that there is not, or that lacks a number.
    """
    text = line.strip()
    if not text.startswith("/"):
        return Direction("prompt", text=text)
    do, _, rest = text[1:].partition(" ")
    words = rest.split()
    if do == "at" and len(words) > 1 and words[0].isdecimal():
        return Direction("prompt", text=rest.split(maxsplit=1)[1], chunk=int(words[0]))
    if do == "roll" and len(words) in (1, 2) and all(word.isdecimal() for word in words):
        return Direction("roll", chunk=int(words[0]), seed=int(words[1]) if words[1:] else None)
    if do == "anchor" and words:
        return Direction("anchor", image=rest.strip())
    if do in ("undo", "pause", "continue", "stop") and not words:
        return Direction(do)
    raise HeliosError(f"{text!r:.60} is no direction; use /at 7 TEXT, /roll 5, /anchor FILE, /undo, /pause, /stop.")
