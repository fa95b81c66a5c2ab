"""Progress of a render: numbers for any front end, and a bar for the terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tqdm import tqdm

from .history import CHUNK_FRAMES
from .samplers import OnStep, Progress


@dataclass
class RenderProgress:
    """Counts steps over all chunks and estimates the time left from the steps taken so far.

    ``steps_per_chunk`` lists the network steps of every chunk of the render.
    """

    steps_per_chunk: list[int]
    started: float = field(default_factory=time.monotonic)
    steps_done: int = 0
    chunks_done: int = 0

    @property
    def total_steps(self) -> int:
        return sum(self.steps_per_chunk)

    @property
    def frames_per_second(self) -> float:
        """Finished frames per second since the start."""
        return self.chunks_done * CHUNK_FRAMES / max(time.monotonic() - self.started, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """None until the first step is done."""
        if not self.steps_done:
            return None
        elapsed = time.monotonic() - self.started
        return elapsed / self.steps_done * (self.total_steps - self.steps_done)

    def step(self) -> None:
        self.steps_done += 1

    def chunk(self) -> None:
        self.chunks_done += 1


class TerminalBar:
    """Shows chunk, stage, frames per second and time left on standard error."""

    def __init__(self, steps_per_chunk: list[int]):
        self._progress = RenderProgress(steps_per_chunk)
        self._bar = tqdm(total=self._progress.total_steps, unit="step", bar_format="{l_bar}{bar}| {postfix}")
        self._position = "starting"
        self._show()

    def __enter__(self) -> TerminalBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def on_step(self, chunk: int) -> OnStep:
        """The step callback of chunk number ``chunk``."""

        def report(step: Progress) -> None:
            chunks = len(self._progress.steps_per_chunk)
            self._progress.step()
            self._position = f"chunk {chunk + 1}/{chunks} stage {step.stage} step {step.step}/{step.total}"
            self._bar.update()
            self._show()

        return report

    def chunk_finished(self) -> None:
        self._progress.chunk()
        self._show()

    def _show(self) -> None:
        left = self._progress.seconds_left
        time_left = "?" if left is None else tqdm.format_interval(left)
        self._bar.set_postfix_str(f"{self._position}, {self._progress.frames_per_second:.1f} fps, {time_left} left")
