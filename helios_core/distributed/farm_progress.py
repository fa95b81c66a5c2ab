"""A farm's progress: one table that stays in its place on a terminal, or a JSON object a line for programs."""

from __future__ import annotations

import json
import shutil
import time
from typing import TextIO

from tqdm import tqdm

from ..variants import CHUNK_FRAMES
from .farm_worker import Event

REDRAW_SECONDS = 0.25
WORKERS_SHOWN = 30


class FarmProgress:
    """Adds a farm's events up; :meth:`tell` takes each as it comes."""

    def __init__(self, films: int, chunks: int):
        self.films, self.chunks = films, chunks
        self.films_done = self.films_failed = self.chunks_done = self.chunks_sampled = 0
        self.at_work: dict[str, Event] = {}  # by the film's id
        self.said: list[str] = []
        self._seen: set[tuple[str, int]] = set()  # a film whose worker died tells its chunks again
        self._begun: float | None = None

    @property
    def frames_per_second(self) -> float | None:
        """Of all workers together; None until a chunk is made."""
        if self._begun is None or not self.chunks_sampled:
            return None
        return self.chunks_sampled * CHUNK_FRAMES / max(time.monotonic() - self._begun, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """At that rate."""
        rate = self.frames_per_second
        return None if rate is None else (self.chunks - self.chunks_done) * CHUNK_FRAMES / rate

    def tell(self, event: Event) -> None:
        """Takes an event of the farm."""
        kind = event["event"]
        if kind in ("sampling", "decoding", "chunk"):
            if self._begun is None:
                self._begun = time.monotonic()
            self.at_work[event["id"]] = event
        if kind == "chunk" and (event["id"], event["chunk"]) not in self._seen:
            self._seen.add((event["id"], event["chunk"]))
            self.chunks_done += 1
            self.chunks_sampled += not event["reused"]
        elif kind == "film":
            self.at_work.pop(event["id"], None)
            self.films_done += event["status"] == "finished"
            self.films_failed += event["status"] == "failed"
            self.said.append(_film(event))
        elif kind in ("refused", "bad_row"):
            self.films_failed += kind == "bad_row"
            self.said.append(event["message"])

    def numbers(self) -> Event:
        """The whole farm as of now."""
        rate, left = self.frames_per_second, self.seconds_left
        return {
            "event": "progress",
            "films": self.films,
            "films_done": self.films_done,
            "films_failed": self.films_failed,
            "chunks": self.chunks,
            "chunks_done": self.chunks_done,
            "fps": None if rate is None else round(rate, 3),
            "seconds_left": None if left is None else round(left, 1),
        }

    def close(self) -> None:
        """The farm has ended."""


class JsonLines(FarmProgress):
    """Every event as a line, and after each chunk and film where the whole farm is."""

    def __init__(self, films: int, chunks: int, file: TextIO):
        super().__init__(films, chunks)
        self._file = file

    def tell(self, event: Event) -> None:
        super().tell(event)
        for line in (event, self.numbers()) if event["event"] in ("chunk", "film") else (event,):
            print(json.dumps(line, ensure_ascii=False), file=self._file, flush=True)


class LiveTable(FarmProgress):
    """A line a film at work, and one of the whole farm; what ends or fails is written above them."""

    def __init__(self, films: int, chunks: int, file: TextIO):
        super().__init__(films, chunks)
        self._file, self._drawn, self._next = file, 0, 0.0

    def tell(self, event: Event) -> None:
        super().tell(event)
        if self.said or time.monotonic() >= self._next:
            self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self._next = time.monotonic() + REDRAW_SECONDS
        width = shutil.get_terminal_size().columns - 1
        table = [*map(_at_work, list(self.at_work.values())[:WORKERS_SHOWN]), self._whole()]
        # Back over the table, and all below gone; then what stays, then the table.
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._file.write(back + "".join(f"{line[:width]}\n" for line in [*self.said, *table]))
        self._file.flush()
        self._drawn = len(table)
        self.said.clear()

    def _whole(self) -> str:
        parts = [f"films {self.films_done}/{self.films}", f"chunks {self.chunks_done}/{self.chunks}"]
        if self.films_failed:
            parts.insert(1, f"{self.films_failed} failed")
        rate, left = self.frames_per_second, self.seconds_left
        if rate is not None and left is not None:
            parts += [f"{rate:.2f} fps", f"{tqdm.format_interval(left)} left"]
        return ", ".join(parts)


def _at_work(event: Event) -> str:
    step = f"step {event['step']}/{event['steps']}" if event["event"] == "sampling" else event["event"]
    rate = "" if event["fps"] is None else f"{event['fps']:7.2f} fps"
    return f"  {event['id'][:30]:30} chunk {event['chunk'] + 1:4} {step:12} {rate}"


def _film(event: Event) -> str:
    if event["status"] == "failed":
        return f"failed: {event['id']}: {event['message']}"
    made = f"{event['sampled']} of {event['chunks']} chunks made"
    return f"{event['id']}: {event['frames']} frames, {made}, {event['seconds']:.1f} s"
