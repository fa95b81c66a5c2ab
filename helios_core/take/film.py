"""The loop over a film's chunks: each is made from what came before it (arXiv 2603.04379, section 3), or found.

A chunk's key follows from the key before it and from everything else that determines it, so equal work has an equal
key whichever take, process or day asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ..errors import HeliosError, shortened
from ..samplers import ChunkSampler, check_end_frames
from ..variants import CHUNK_FRAMES
from .chunk import Chunk
from .fingerprint import fingerprint
from .history import History, check_size
from .seed_changes import SeedChanges, seed_at
from .take import Take

# Four hours of film at 24 fps; what lists every chunk stays small.
MOST_CHUNKS = 10_000
KEY_FORMAT, KEY_VERSION = "helios-store", 1


class ChunkSource(Protocol):
    """How the chunks of one film are made, and what determines them: what a front end supplies."""

    def sample(self, history: History, seed: int | None) -> tuple[Tensor, History]:
        """The latents of the chunk after ``history``, and the history after that chunk.

        ``seed`` None, or the one that the history has, continues the history's random numbers.
        """

    def determined_by(self, history: History) -> Mapping[str, Any]:
        """All but the seed and the chunks before that decides the content of the chunk after ``history``."""


@dataclass(frozen=True)
class Film:
    """``num_chunks`` chunks of ``source`` that follow ``start``."""

    source: ChunkSource
    start: History
    num_chunks: int
    seed: int | None = None
    seed_changes: SeedChanges = ()

    @property
    def first_key(self) -> str:
        """The first chunk's key."""
        return self._key_after(start_key(self.start), self.start)

    def chunks(self, take: Take | None = None) -> Iterator[Chunk]:
        """Yields each chunk as soon as it is finished.

        ``take`` keeps finished chunks on disk, before they are yielded, and no chunk that is there is sampled.
        """
        history, key = self.start, "" if take is None else start_key(self.start)
        for _ in range(self.num_chunks):
            if take is None:
                chunk = self._sampled(history)
            else:
                previous, key = key, self._key_after(key, history)
                chunk = take.chunk(key, previous, partial(self._sampled, history))
            history = chunk.history
            yield chunk

    def _sampled(self, history: History) -> Chunk:
        latents, after = self.source.sample(history, self._seed_at(history))
        return Chunk(history.chunk, latents, after)

    def _key_after(self, previous: str, history: History) -> str:
        return chunk_key(previous, seed=self._seed_at(history), **self.source.determined_by(history))

    def _seed_at(self, history: History) -> int | None:
        return seed_at(self.seed_changes, history.chunk, self.seed)


def start_key(history: History) -> str:
    """The key before a film's first chunk: what the film starts from, its random state included."""
    tensors, plain = history.parts()
    return fingerprint(KEY_FORMAT, KEY_VERSION, {**tensors, **plain})


def chunk_key(previous_key: str, **determined_by: Any) -> str:
    """The key of the chunk that follows ``previous_key``; ``determined_by`` is all that its content depends on."""
    return fingerprint(previous_key, determined_by)


def check_film(sampler: ChunkSampler, history: History, num_chunks: int) -> None:
    """Refuses a film that cannot be sampled, before any sampling starts.

    Raises:
        HeliosError: no chunks or too many, a size that the sampler's pyramid cannot divide, or an end frame of another.
    """
    if not 1 <= num_chunks <= MOST_CHUNKS:
        raise HeliosError(f"num_chunks={num_chunks} must be at least 1, at most {MOST_CHUNKS}; one chunk is 33 frames.")
    check_size(history.width, history.height, sampler.size_multiple)
    check_end_frames(sampler, history.width, history.height, len(history.latents))


def chunk_count(num_frames: int) -> int:
    """Chunks that hold ``num_frames``, at least one."""
    most = MOST_CHUNKS * CHUNK_FRAMES
    if not 1 <= num_frames <= most:
        raise HeliosError(
            f"num_frames={shortened(num_frames)} must be at least 1, at most {most}; a chunk is {CHUNK_FRAMES} frames."
        )
    return -(-num_frames // CHUNK_FRAMES)
