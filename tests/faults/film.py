"""A film of small chunks, made in a moment by the real loop, take, store and growing video; and a server of them.

What it does is noted as it happens, in a file beside the film: ``sampled N``, ``kept N`` once a chunk is in the store,
``shown N`` once it is in the growing video, ``whole N`` when all N chunks are in a file that is about to get the
finished film's name. Every chunk depends on those before, so a wrong one shows to the end.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from helios_core.samplers import draw_noise
from helios_core.take.chunk import Chunk
from helios_core.take.film import Film
from helios_core.take.history import History
from helios_core.take.render import render_film
from helios_core.take.store import FOLDER_NAME, ChunkStore
from helios_core.take.take import Take
from helios_core.video.segments import VideoSettings

WIDTH, HEIGHT, CHUNKS, SEED = 64, 32, 3, 7
SETTINGS = VideoSettings(WIDTH, HEIGHT)
PARTIAL, FILM = "film.partial.mp4", "film.mp4"

Note = Callable[[str], object]


class StubChunks:
    """Half noise, half what the history looks like; no network."""

    def __init__(self, note: Note):
        self._note, self._generator = note, torch.Generator()

    def sample(self, history: History, seed: int | None) -> tuple[Tensor, History]:
        self._note(f"sampled {history.chunk}")
        generator = history.seeded(self._generator, seed)
        noise = draw_noise(history.chunk_shape, generator)
        mean = history.latents.mean(dim=2, keepdim=True)
        latents = 0.5 * noise + 0.4 * mean.expand_as(noise) + 0.1 * (history.chunk % 5)
        return latents, history.after(latents, generator, seed)

    def determined_by(self, _: History) -> dict[str, str]:
        return {"model": "stub"}


class Observer:
    """Notes what is in the growing video."""

    def __init__(self, note: Note):
        self._note = note

    def decoding(self, chunk: Chunk) -> None:
        pass

    def decoded(self, chunk: Chunk, frames: Tensor | None) -> None:
        pass

    def on_disk(self, index: int, reused: bool, segment: str) -> None:
        self._note(f"shown {index}")

    def writing(self) -> None:
        pass


def frames_of(latents: Tensor) -> Tensor:
    """[1,16,9,h,w] -> uint8 [33,8h,8w,3]."""
    grown = torch.nn.functional.interpolate(latents[:, :3], (33, HEIGHT, WIDTH), mode="nearest")[0]
    return (grown * 60 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def render(
    folder: Path, note: Note = lambda _: None, chunks: int = CHUNKS, store: ChunkStore | None = None, name: str = FILM
) -> tuple[Path, Tensor]:
    """The finished file and all latents."""
    take = Take(store or ChunkStore(folder / FOLDER_NAME), name.removesuffix(".mp4"), {})
    film, made = Film(StubChunks(note), History.empty(WIDTH, HEIGHT), chunks, SEED), []

    def kept() -> Iterator[Chunk]:
        for chunk in film.chunks(take):
            note(f"kept {chunk.index}")
            made.append(chunk.latents)
            yield chunk

    def publish(finished: Path) -> Path:
        note(f"whole {chunks}")
        return finished.replace(folder / name)

    path, _ = render_film(
        kept(),
        take,
        folder / name.replace(".mp4", ".partial.mp4"),
        SETTINGS,
        "",
        frames_of,
        publish,
        Observer(note),
    )
    return path, torch.cat(made, dim=2)


def noting(file: Path) -> Note:
    """Notes that a kill cannot take back: one write each, in the system's hands when it returns."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    return lambda text: os.write(descriptor, f"{text}\n".encode())


def numbers(notes: list[str], kind: str) -> list[int]:
    """The chunks that were ``sampled``, ``kept`` or ``shown``, in order."""
    return [int(note.split()[1]) for note in notes if note.startswith(kind)]


def growing(notes: list[str]) -> list[str]:
    """What was noted since the last film that became whole: its growing video is gone, or about to go."""
    whole = [at for at, note in enumerate(notes) if note.startswith("whole")]
    return notes[whole[-1] + 1 :] if whole else notes


def check_sampled_once(notes: list[str]) -> None:
    """No chunk is sampled after it was kept."""
    kept = set()
    for note in notes:
        kind, chunk = note.split()
        assert kind != "sampled" or chunk not in kept, f"chunk {chunk} was finished, and sampled again"
        if kind == "kept":
            kept.add(chunk)


def serve() -> None:
    """Renders a film in a fork of this process for every folder on standard input; tells its id, then how it ended."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        folder = Path(line.strip())
        child = os.fork()
        if not child:
            try:
                render(folder, noting(folder / "notes"))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
