"""A film of small chunks, made in a moment by the real loop, take, store and growing video; and a server of them.

What it does is noted as it happens, in a file beside the film: ``sampled N``, ``kept N`` once a chunk is in the store,
``shown N`` once it is in the growing video. Every chunk depends on those before, so a wrong one shows to the end.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from helios_core.chain import sample_chunks
from helios_core.history import History
from helios_core.store import FOLDER_NAME, ChunkStore, start_key
from helios_core.take import KeyedChunks, Take
from helios_core.take_video import TakeVideo, VideoSettings

WIDTH, HEIGHT, CHUNKS, SEED = 64, 32, 3, 7
SETTINGS = VideoSettings(WIDTH, HEIGHT)
PARTIAL, FILM = "film.partial.mp4", "film.mp4"

Note = Callable[[str], object]


class StubSampler:
    """Half noise, half what the history looks like; no network."""

    variant, zero_star, size_multiple = "distilled", False, 16

    def __init__(self, note: Note):
        self._note = note

    def total_steps(self, chunk: int) -> int:
        return 1

    def sample(self, velocity, noise, generator, chunk, guided=False, on_step=None, dtype=torch.float32) -> Tensor:
        self._note(f"sampled {chunk}")
        return 0.5 * noise + velocity(noise, torch.zeros(1))


def velocity_for(history: History):
    mean = history.latents.mean(dim=2, keepdim=True)
    return lambda latents, _: 0.4 * mean.expand_as(latents) + 0.1 * (history.chunk % 5)


def frames_of(latents: Tensor) -> Tensor:
    """[1,16,9,h,w] -> uint8 [33,8h,8w,3]."""
    grown = torch.nn.functional.interpolate(latents[:, :3], (33, HEIGHT, WIDTH), mode="nearest")[0]
    return (grown * 60 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def render(
    folder: Path, note: Note = lambda _: None, chunks: int = CHUNKS, store: ChunkStore | None = None, name: str = FILM
) -> tuple[Path, Tensor]:
    """The finished file and all latents."""
    store = store or ChunkStore(folder / FOLDER_NAME)
    start, made = History.empty(WIDTH, HEIGHT), []
    with Take(store, name.removesuffix(".mp4"), {}) as take:
        keyed = KeyedChunks(take)
        keyed.begin(start_key(start), lambda _: {"model": "stub"})

        def shown(position: int, video: Path) -> None:
            take.in_video(position, video)
            note(f"shown {position}")

        with TakeVideo(folder / name.replace(".mp4", ".partial.mp4"), SETTINGS, store, on_chunk=shown) as video:
            generator = torch.Generator().manual_seed(SEED)
            sampler = StubSampler(note)
            for latents, history in sample_chunks(velocity_for, sampler, start, chunks, generator, kept=keyed):
                note(f"kept {history.chunk - 1}")
                made.append(latents)
                video.add(keyed.key, lambda latents=latents: frames_of(latents))
            path = video.finish(lambda finished: finished.replace(folder / name))
        take.end("finished", path)
    return path, torch.cat(made, dim=2)


def noting(file: Path) -> Note:
    """Notes that a kill cannot take back: one write each, in the system's hands when it returns."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    return lambda text: os.write(descriptor, f"{text}\n".encode())


def numbers(notes: list[str], kind: str) -> list[int]:
    """The chunks that were ``sampled``, ``kept`` or ``shown``, in order."""
    return [int(note.split()[1]) for note in notes if note.startswith(kind)]


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
