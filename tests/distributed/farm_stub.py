"""A renderer without a network that the farm's workers can import: the fault tests' film, noted in one file."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch import Tensor

from helios_core.distributed.farm_worker import Watch
from helios_core.distributed.jobs import Job
from helios_core.errors import HeliosError
from helios_core.take.chunk import Chunk
from helios_core.take.film import Film
from helios_core.take.history import History
from helios_core.take.render import render_film
from helios_core.take.take import Take

WIDTH, HEIGHT = 64, 32


def _film() -> ModuleType:
    file = Path(__file__).parents[1] / "faults" / "film.py"
    spec = importlib.util.spec_from_file_location("helios_farm_stub_film", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StubRenderer:
    """Notes ``ID sampled N`` as it begins a chunk and ``ID kept N`` once it is in the store.

    ``seconds`` a chunk takes; a job whose prompt is ``broken`` fails.
    """

    processes = 1

    def __init__(self, notes: Path, seconds: float = 0.0):
        self._notes, self._seconds = notes, seconds

    def checked(self, job: Job) -> Job:
        return job

    def identity(self, model: str) -> str:
        return model

    def render(self, job: Job, take: Take, target: Path, watch: Watch) -> None:
        if job.rows[0][1] == "broken":
            raise HeliosError("prompt is broken; mend it.")
        stub = _film()
        write = stub.noting(self._notes)

        def note(text: str) -> None:
            write(f"{job.id} {text}")

        def kept() -> Iterator[Chunk]:
            film = Film(stub.StubChunks(self._slow(note)), History.empty(WIDTH, HEIGHT), job.chunks, job.seed)
            for chunk in film.chunks(take):
                note(f"kept {chunk.index}")
                yield chunk

        def decode(latents: Tensor) -> Tensor:
            return stub.frames_of(latents)

        growing = target.with_name(f"{target.stem}.partial.mp4")
        render_film(
            kept(), take, growing, job.settings, "", decode, lambda path: path.replace(target), watch([1] * job.chunks)
        )

    def _slow(self, note):
        def slowly(text: str) -> None:
            note(text)
            time.sleep(self._seconds)

        return slowly


def size(_model: str) -> tuple[int, int]:
    """What the stub's films are made in."""
    return WIDTH, HEIGHT
