"""What renders jobs in a process of its own, one at a time; knows nothing of Ray."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from ..errors import HeliosError, reason
from ..samplers import Progress
from ..take.chunk import Chunk
from ..take.fingerprint import fingerprint
from ..take.progress import FilmCounter
from ..take.store import ChunkStore
from ..take.take import Take
from ..variants import CHUNK_FRAMES
from ..video.growing import PARTIAL_SUFFIX
from .jobs import Job

# A job that ended its worker so many times is given up.
MOST_TRIES = 4

Event = dict[str, Any]
Watch = Callable[[list[int]], FilmCounter]
"""Given the steps of every chunk of the film, what counts them."""

log = logging.getLogger(__name__)


class Renderer(Protocol):
    """How a job becomes a film; sent to every worker, where it may keep what is loaded.

    ``processes`` make each film together; the worker leads them and starts the others.
    """

    processes: int

    def checked(self, job: Job) -> Job:
        """The job as workers take it. Refuses, without loading anything, what is known here to be wrong.

        Raises:
            HeliosError: one sentence about it.
        """

    def identity(self, model: str) -> str:
        """Tells models apart; their names where their files are not here."""

    def render(self, job: Job, take: Take, target: Path, watch: Watch) -> None:
        """Writes the film to ``target``. Raises HeliosError."""


@dataclass(frozen=True)
class FarmFolder:
    """Where films go, and the store of their chunks; the same for all workers."""

    output: Path
    store: Path

    def film(self, job: Job) -> Path:
        return self.output / f"{job.id}.mp4"

    def tries(self, job: Job) -> Path:
        """Grows by a byte each time that a worker begins the job, and is gone when one ends it."""
        return self.output / f".{job.id}.tries"

    def forget(self, name: str) -> None:
        """Removes a job's film, finished or growing, and its take's manifest; chunks stay in the store."""
        for suffix in (".mp4", PARTIAL_SUFFIX):
            (self.output / f"{name}{suffix}").unlink(missing_ok=True)
        (ChunkStore(self.store).takes / f"{name}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``sampled`` of its ``chunks`` were made now, the others found; ``seconds`` it took."""

    id: str
    status: Literal["finished", "failed"]
    message: str = ""
    worker: str = ""
    chunks: int = 0
    frames: int = 0
    sampled: int = 0
    seconds: float = 0.0
    news: tuple[Event, ...] = ()

    def event(self) -> Event:
        """As progress and manifest tell it."""
        return {"event": "film", **{name: value for name, value in asdict(self).items() if name != "news"}}


class News:
    """Events of a worker since they were last taken; of a chunk's steps the newest stands for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def tell(self, event: Event) -> None:
        with self._lock:
            if self._events and _is_step(event) and _is_step(self._events[-1]):
                self._events.pop()
            self._events.append(event)

    def taken(self) -> tuple[Event, ...]:
        with self._lock:
            events, self._events = self._events, []
        return tuple(events)


def _is_step(event: Event) -> bool:
    return event["event"] == "sampling"


class StoppedError(KeyboardInterrupt):
    """Somebody wants no more of the film; its take's manifest says that it was interrupted."""


class WorkerReport(FilmCounter):
    """Tells of one film's chunks; ends it at its next step once ``stop`` is set."""

    def __init__(self, job: Job, news: News, stop: threading.Event, steps_per_chunk: list[int]):
        super().__init__(steps_per_chunk, job.fps)
        self._id, self._news, self._stop = job.id, news, stop

    @property
    def sampled(self) -> int:
        """Chunks that were made and not found."""
        return self.progress.chunks_done - self.progress.chunks_reused

    def stepped(self, chunk: int, step: Progress) -> None:
        self._tell("sampling", chunk, stage=step.stage, step=step.step, steps=step.total)

    def decoding(self, chunk: Chunk) -> None:
        super().decoding(chunk)
        self._tell("decoding", chunk.index, reused=chunk.reused)

    def decoded(self, _chunk: Chunk, _frames: Tensor | None) -> None:
        self.progress.chunk()

    def on_disk(self, index: int, reused: bool, segment: str) -> None:
        self._tell("chunk", index, reused=reused, segment=segment)

    def _tell(self, event: str, chunk: int, **known: Any) -> None:
        if self._stop.is_set() and event != "chunk":  # that one comes from the video's thread, which ends by itself
            raise StoppedError
        numbers = self.progress.numbers()
        self._news.tell({"event": event, "id": self._id, "chunk": chunk, **known, **numbers})


class FilmWorker:
    """Renders jobs; :meth:`news` may be called from another thread meanwhile.

    Args:
        version: the code that the driver runs.

    Raises:
        HeliosError: this is another version of the pack.
    """

    def __init__(self, renderer: Renderer, version: str):
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        if code_version() != version:
            raise HeliosError(
                f"worker {self.name} runs another version of the pack ({code_version()}, here {version}); install the "
                "same one there."
            )
        self._renderer, self._news, self._stop = renderer, News(), threading.Event()

    def identity(self) -> str:
        """Machine and process."""
        return self.name

    def news(self) -> tuple[Event, ...]:
        """Events since the last call."""
        return self._news.taken()

    def stop(self) -> None:
        """Ends the film at work at its next step; finished chunks are kept."""
        self._stop.set()

    def render(self, job: Job, folder: FarmFolder) -> Outcome:
        """Makes one film. What goes wrong is told in the outcome, so that the worker goes on with the next job."""
        self._stop.clear()
        begun, reports = time.monotonic(), list[WorkerReport]()

        def watch(steps_per_chunk: list[int]) -> FilmCounter:
            reports.append(WorkerReport(job, self._news, self._stop, steps_per_chunk))
            return reports[-1]

        message = ""
        try:
            self._count_try(job, folder.tries(job))
            take = Take(ChunkStore(folder.store), job.id, job.shown())
            self._renderer.render(job, take, folder.film(job), watch)
        except HeliosError as error:
            message = str(error)
        except StoppedError:
            message = "it was stopped; finished chunks are kept."
        except Exception as error:
            log.exception("film %s failed", job.id)
            message = f"it failed on {self.name} ({type(error).__name__}: {reason(error)}); the worker's log has more."
        folder.tries(job).unlink(missing_ok=True)
        return Outcome(
            id=job.id,
            status="failed" if message else "finished",
            message=message,
            worker=self.name,
            chunks=job.chunks,
            frames=job.chunks * CHUNK_FRAMES,
            sampled=reports[-1].sampled if reports else 0,
            seconds=round(time.monotonic() - begun, 3),
            news=self._news.taken(),
        )

    def _count_try(self, job: Job, tries: Path) -> None:
        """Gives up a job whose workers died again and again: Ray retries without end, for it counts machines too."""
        with contextlib.suppress(OSError):  # a folder that cannot be written is told by who needs it
            with tries.open("ab") as file:
                file.write(b".")
            if tries.stat().st_size > MOST_TRIES:
                raise HeliosError(f"its worker died {MOST_TRIES} times while it was made; finished chunks are kept.")


@functools.cache
def code_version() -> str:
    """Tells versions of the library apart, also where both have the same number: a digest of its files."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(root.rglob("*.py"))
    return fingerprint([(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")) for file in files])[:12]
