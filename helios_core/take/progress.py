"""Progress of a render: numbers for any front end, and a bar for the terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor
from tqdm import tqdm

from ..samplers import OnStep, Progress
from ..variants import CHUNK_FRAMES
from .chunk import Chunk


@dataclass
class RenderProgress:
    """Counts steps over all chunks and estimates the time left from the steps taken so far.

    ``steps_per_chunk`` lists the network steps of every chunk of the render, ``fps`` is the film's frame rate.
    Chunks from the store count as film, not as work.
    """

    steps_per_chunk: list[int]
    fps: float = 24
    started: float = field(default_factory=time.monotonic)
    steps_done: int = 0
    steps_reused: int = 0
    chunks_done: int = 0
    chunks_reused: int = 0

    @property
    def total_steps(self) -> int:
        return sum(self.steps_per_chunk)

    @property
    def position(self) -> int:
        """Steps of the render that lie behind, made or reused."""
        return self.steps_done + self.steps_reused

    @property
    def frames_per_second(self) -> float | None:
        """Frames made per second; None until a chunk is made. Reading chunks from the store does not count."""
        made = self.chunks_done - self.chunks_reused
        return made * CHUNK_FRAMES / max(time.monotonic() - self.started, 1e-6) if made > 0 else None

    @property
    def film_seconds(self) -> float:
        """Length of what is finished."""
        return self.chunks_done * CHUNK_FRAMES / self.fps

    @property
    def seconds_left(self) -> float | None:
        """None until the first step is done."""
        if not self.steps_done:
            return None
        elapsed = time.monotonic() - self.started
        return elapsed / self.steps_done * (self.total_steps - self.position)

    def step(self) -> None:
        self.steps_done += 1

    def chunk(self) -> None:
        self.chunks_done += 1

    def reuse(self) -> None:
        """The next chunk comes from the store."""
        self.steps_reused += self.steps_per_chunk[self.chunks_done]
        self.chunks_reused += 1
        if not self.steps_done:
            self.started = time.monotonic()

    def numbers(self) -> dict[str, float | None]:
        """``film_seconds``, ``fps`` and ``seconds_left`` as of now, for front ends that show them in their own way."""
        left, rate = self.seconds_left, self.frames_per_second
        return {
            "film_seconds": round(self.film_seconds, 3),
            "fps": None if rate is None else round(rate, 3),
            "seconds_left": None if left is None else round(left, 1),
        }

    def text(self, position: str) -> str:
        """One line: chunk i of n, what it is at, speed, time left, film so far; what is not known is left out."""
        chunks, left, rate = len(self.steps_per_chunk), self.seconds_left, self.frames_per_second
        parts = [f"chunk {min(self.chunks_done + 1, chunks)}/{chunks} {position}"]
        if rate is not None:
            parts.append(f"{rate:.2f} fps")
        if left is not None and self.chunks_done < chunks:
            parts.append(f"{tqdm.format_interval(left)} left")
        return ", ".join([*parts, f"{self.film_seconds:.1f} s of film"])


@dataclass
class OpenProgress(RenderProgress):
    """Of a film that may go back, and whose end may be open: counted anew from every chunk that begins.

    ``steps_per_chunk`` lists all chunks that there can be; where the end is open, it is shown as far as the film is.
    """

    open_end: bool = False
    rate: float | None = None
    _all_steps: list[int] = field(init=False)
    _stepped: bool = False

    def __post_init__(self) -> None:
        self._all_steps = self.steps_per_chunk
        self.begin(0)

    @property
    def frames_per_second(self) -> float | None:
        """Of the newest chunk that was made."""
        return self.rate

    @property
    def seconds_left(self) -> float | None:
        if self.rate is None or self.open_end:
            return None
        return (len(self.steps_per_chunk) - self.chunks_done) * CHUNK_FRAMES / self.rate

    def begin(self, position: int) -> None:
        """The film's chunk number ``position``, from 0, begins; there is none behind it."""
        if self.open_end:
            self.steps_per_chunk = self._all_steps[: position + 1]
        self.chunks_done, self.steps_done = position, sum(self._all_steps[:position])
        self.chunks_reused = self.steps_reused = 0
        self.started, self._stepped = time.monotonic(), False

    def step(self) -> None:
        super().step()
        self._stepped = True

    def chunk(self) -> None:
        super().chunk()
        if self._stepped:
            self.rate = CHUNK_FRAMES / max(time.monotonic() - self.started, 1e-6)


class FilmCounter:
    """A :class:`~helios_core.take.render.FilmObserver` that counts; front ends show what they like in :meth:`at`."""

    def __init__(self, steps_per_chunk: list[int], fps: float = 24):
        self.progress = RenderProgress(steps_per_chunk, fps)

    def on_step(self, chunk: int) -> OnStep:
        """The step callback of a chunk."""

        def report(step: Progress) -> None:
            self.progress.step()
            self.stepped(chunk, step)

        return report

    def stepped(self, _chunk: int, step: Progress) -> None:
        """A step of the chunk is done."""
        self.at(f"stage {step.stage} step {step.step}/{step.total}")

    def at(self, position: str) -> None:
        """What the chunk is at now."""

    def decoding(self, chunk: Chunk) -> None:
        """See :class:`~helios_core.take.render.FilmObserver`, also for the next ones."""
        if chunk.reused:
            self.progress.reuse()
        self.at("decoding")

    def decoded(self, _chunk: Chunk, _frames: Tensor | None) -> None:
        self.progress.chunk()
        self.at("starting")

    def on_disk(self, _index: int, _reused: bool, _segment: str) -> None:
        pass

    def writing(self) -> None:
        self.at("writing the file")


class TerminalBar(FilmCounter):
    """Shows :meth:`RenderProgress.text` on standard error."""

    def __init__(self, steps_per_chunk: list[int], fps: float = 24):
        super().__init__(steps_per_chunk, fps)
        self._bar = tqdm(total=self.progress.total_steps, unit="step", bar_format="{l_bar}{bar}| {postfix}")
        self.at("starting")

    def __enter__(self) -> TerminalBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def at(self, position: str) -> None:
        """Shows what the chunk is at."""
        self._bar.update(self.progress.position - self._bar.n)
        self._bar.set_postfix_str(self.progress.text(position))
