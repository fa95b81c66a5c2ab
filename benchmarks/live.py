"""A live film without an end in one real ComfyUI, directed and watched: what grows, and how long a direction takes.

    python -m benchmarks.live [--comfyui PATH] [--chunks 200] [--directions 25] [--size 64 64] [--output FOLDER]

Renders with helios-tiny (random weights, half the VAE's width), one step a stage, max_chunks 0, and stops after
``--chunks``. A client asks for each part of the stream as soon as it is told of it; prompts come at random moments.
Writes ``live.json``, after SIGTERM too (Linux only). A direction's time is until the client has the first part that
shows it; allowed is the rest of the chunk that is being made and one chunk more (their median), and a tenth.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from helios_core.commands import tiny
from helios_setup.comfyui import existing_tree, link_folder
from helios_setup.server import ComfyServer, failure, stop_on_terminate
from helios_setup.workflow import fill_workflow, load_workflow

from .soak import ALLOWED_HANDLES, ALLOWED_MIB, ROOT, STEPS, WORKFLOWS, open_files, process_numbers, start

VARIANT, VAE_WIDTH = "distilled", 4
WARM_CHUNKS = 8
ALLOWED_TIME, ALLOWED_WAIT = 1.1, 0.02
CLOCK = "feed_clock"


@dataclass(frozen=True)
class Measured:
    """The server when a client had a chunk's part; ``at`` in seconds, ``rss`` in MiB."""

    chunk: int
    at: float
    rss: float
    handles: int
    threads: int


@dataclass(frozen=True)
class Said:
    """A prompt: when it was given (seconds), and the chunk from which it holds."""

    at: float
    chunk: int


@dataclass
class LiveFilm:
    """What was measured of one; ``waited`` are the seconds of ``feed_clock``, ``seconds`` the film's."""

    chunks: list[Measured] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    waited: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def graph(size: Sequence[int]) -> dict[str, Any]:
    """The shipped workflow, without an end."""
    filled = load_workflow(WORKFLOWS, "helios_distilled_live")
    filled = fill_workflow(filled, f"helios-tiny-{VARIANT}", size=(size[0], size[1]))
    for node in filled.values():
        if node["class_type"] in STEPS:
            node["inputs"].update(steps=STEPS[node["class_type"]], amplify_first_chunk=False)
        if node["class_type"] == "HeliosLiveVideo":
            node["inputs"].update(max_chunks=0, resume=False)
    return filled


@contextmanager
def clocked(tree: Path, base: Path) -> Iterator[ComfyServer]:
    """A server whose sampling thread is timed."""
    server = start(tree, base, [])
    with patch.dict(tiny.VAE_CONFIG, base_dim=VAE_WIDTH):
        tiny.write_tiny(base / "models" / "diffusers" / f"helios-tiny-{VARIANT}", variant=VARIANT)
    link_folder(ROOT / "benchmarks" / CLOCK, base / "custom_nodes" / CLOCK)
    with server:
        yield server


def measure(
    film: LiveFilm, server: ComfyServer, size: Sequence[int], chunks: int, directions: int, seed: int = 0
) -> None:
    """Makes one film of about ``chunks``, of which ``directions`` get a prompt at a random moment before."""
    rng = random.Random(seed)
    server.get(f"/{CLOCK}")
    prompt = server.queue(graph(size))
    take = server.wait_for_event(
        lambda event: event.type == "helios.take" and event.data["kind"] == "start", timeout=240
    )
    began, address = take.at, f"/helios/takes/{take.data['id']}"
    # A prompt that comes late in a chunk holds from the third one after it.
    after = set(rng.sample(range(WARM_CHUNKS, chunks - 4), directions))
    talks: list[threading.Thread] = []

    def say(delay: float, text: str) -> None:
        time.sleep(delay)
        at = time.monotonic()
        status, answer = server.post_raw(f"{address}/direct", {"version": 1, "do": "prompt", "text": text})
        if status == 200:
            film.said.append(Said(at - began, answer["chunk"]))

    for chunk in range(chunks):
        told = server.wait_for_event(lambda event, chunk=chunk: _is_finished(event, chunk), timeout=600)
        film.chunks.append(_seen(server, address, chunk, began))
        film.waited, film.seconds = server.get(f"/{CLOCK}"), time.monotonic() - began
        print(film.chunks[-1], flush=True)
        if chunk in after:
            usual = film.chunks[-1].at / len(film.chunks)
            talks.append(threading.Thread(target=say, args=(rng.random() * usual, f"prompt {chunk}")))
            talks[-1].start()
        assert told.data["chunk"]["video"]
    for talk in talks:
        talk.join()
    server.post_raw(f"{address}/direct", {"version": 1, "do": "stop"})
    reason = failure(server.wait(prompt))
    if reason is not None:
        raise RuntimeError(reason)


def _is_finished(event: Any, chunk: int) -> bool:
    if event.type != "helios.take" or event.data["kind"] != "chunk":
        return False
    told = event.data["chunk"]
    return told["chunk"] == chunk and told["state"] == "finished"


def _seen(server: ComfyServer, address: str, chunk: int, began: float) -> Measured:
    """As a player does: the playlist, and the part that is new in it."""
    parts = [line for line in server.content(f"{address}/stream.m3u8").decode().splitlines() if line and line[0] != "#"]
    server.content(f"{address}/{parts[chunk]}")
    at, status = time.monotonic() - began, process_numbers(server.pid, "status")
    return Measured(chunk, round(at, 3), status["VmRSS"] / 1024, open_files(server.pid), status["Threads"])


def summary(film: LiveFilm, warm: int = WARM_CHUNKS) -> dict[str, float]:
    """What must stay flat, after the first ``warm`` chunks: growth is against the chunk counted first, that of memory,
    which rises and falls within a chunk, against the most in the second half of the ``warm`` ones. Times in
    seconds; ``direction_of_allowed`` is a direction's time in parts of the one that is allowed, without its tenth."""
    counted = film.chunks[warm - 1 :]
    first, most = counted[0], max(row.rss for row in film.chunks[warm // 2 : warm])
    times = {row.chunk: row.at for row in film.chunks}
    lasted = {later.chunk: later.at - row.at for row, later in itertools.pairwise(counted)}
    usual = statistics.median(lasted.values())
    said = [entry for entry in film.said if entry.chunk in lasted]
    took = [times[entry.chunk] - entry.at for entry in said]
    allowed = [max(0.0, times[entry.chunk - 1] - entry.at) + usual for entry in said]
    shares = list(map(float.__truediv__, took, allowed))
    return {
        "chunks": len(film.chunks),
        "seconds": film.seconds,
        "chunk_seconds": usual,
        "chunk_seconds_of_new_prompts": statistics.median(lasted[entry.chunk] for entry in said),
        "rss_first": most,
        "rss_last": counted[-1].rss,
        "rss_growth": max(row.rss for row in counted) - most,
        "handles_growth": max(row.handles for row in counted) - first.handles,
        "threads_growth": max(row.threads for row in counted) - first.threads,
        "directions": len(said),
        "direction_seconds": statistics.median(took),
        "direction_of_allowed": statistics.median(shares),
        "direction_of_allowed_worst": max(shares),
        "directions_late": sum(share > ALLOWED_TIME for share in shares),
        **{f"waited_for_{kind}": seconds / film.seconds for kind, seconds in film.waited.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI folder (default: what run.py setup unpacked)")
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--directions", type=int, default=25)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--output", type=Path, default=Path.cwd(), help="folder of live.json")
    options = parser.parse_args()
    tree = options.comfyui.resolve() if options.comfyui else existing_tree()
    if tree is None:
        parser.error("no ComfyUI: run `python run.py setup`, or give --comfyui")
    stop_on_terminate()
    film = LiveFilm()
    try:
        with tempfile.TemporaryDirectory() as temporary, clocked(tree, Path(temporary)) as server:
            measure(film, server, options.size, options.chunks, options.directions)
    finally:
        figures = summary(film)
        options.output.mkdir(parents=True, exist_ok=True)
        result = {"summary": figures, "chunks": [*map(asdict, film.chunks)], "said": [*map(asdict, film.said)]}
        (options.output / "live.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    flat = figures["rss_growth"] <= ALLOWED_MIB and figures["handles_growth"] <= ALLOWED_HANDLES
    return int(not flat or figures["waited_for_feed"] > ALLOWED_WAIT)


if __name__ == "__main__":
    sys.exit(main())
