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
from .anchor import with_anchor
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
class Cue:
    """What is settled of a chunk as it begins: its number, its seed, and another anchor from it on."""

    chunk: int
    seed: int | None
    anchor: Tensor | None = None


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
        seed = seed_at(self.seed_changes, self.start.chunk, self.seed)
        return self._key_after(start_key(self.start), self.start, seed)

    def cues(self, _take: Take | None) -> Iterator[Cue]:
        """The chunks in the order in which they are made, each told when it begins."""
        first = self.start.chunk
        for chunk in range(first, first + self.num_chunks):
            yield Cue(chunk, seed_at(self.seed_changes, chunk, self.seed))

    def wants(self, _chunk: int) -> bool:
        """Whether a chunk that was made meanwhile is still part of the film."""
        return True

    def chunks(self, take: Take | None = None) -> Iterator[Chunk]:
        """Yields each chunk as soon as it is finished. One that is not behind the one before takes the place of all
        from it on.

        ``take`` keeps finished chunks on disk, before they are yielded, and no chunk that is there is sampled.
        """
        history, key = self.start, "" if take is None else start_key(self.start)
        for cue in self.cues(take):
            if cue.chunk != history.chunk and take is not None:
                before = take.back_to(cue.chunk)
                history, key = (self.start, start_key(self.start)) if before is None else (before.history, before.key)
            if cue.anchor is not None:
                # As a film that begins here: the same frames, under the same keys.
                history = with_anchor(history, cue.anchor)
                key = "" if take is None else start_key(history)
            if take is None:
                chunk = self._sampled(history, cue.seed)
            else:
                previous, key = key, self._key_after(key, history, cue.seed)
                chunk = take.chunk(key, previous, partial(self._sampled, history, cue.seed))
            history = chunk.history
            if self.wants(chunk.index):
                yield chunk
            elif take is not None:
                take.forget(chunk.index)

    def _sampled(self, history: History, seed: int | None) -> Chunk:
        latents, after = self.source.sample(history, seed)
        return Chunk(history.chunk, latents, after)

    def _key_after(self, previous: str, history: History, seed: int | None) -> str:
        return chunk_key(previous, seed=seed, **self.source.determined_by(history))


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
