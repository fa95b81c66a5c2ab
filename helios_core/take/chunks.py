"""The chunk loop: each chunk is denoised from what came before it (arXiv 2603.04379, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..errors import HeliosError
from ..samplers import OnStep, Velocity, draw_noise, moved
from .history import History, check_size

# Four hours of film at 24 fps; what lists every chunk stays small.
MOST_CHUNKS = 10_000

VelocityFactory = Callable[[History], Velocity]
"""Prepares the network for one chunk: text in force and history context are fixed for all of its steps."""


KeptChunks = Callable[[History, Callable[[], tuple[Tensor, History]]], tuple[Tensor, History]]
"""Given the history before a chunk and how to sample it, returns it, from wherever it has it."""


class ChunkSampler(Protocol):
    """What the samplers of ``helios_core.samplers`` have in common."""

    @property
    def variant(self) -> str:
        """The variant whose weights it was made for: base, mid or distilled."""

    @property
    def zero_star(self) -> bool:
        """Whether guidance is CFG-Zero*."""

    @property
    def size_multiple(self) -> int:
        """Pixels that width and height must be divisible by."""

    def total_steps(self, chunk: int) -> int:
        """Steps in chunk number ``chunk``."""

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        generator: torch.Generator,
        chunk: int,
        guided: bool = False,
        on_step: OnStep | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Noise [B,16,9,H/8,W/8] -> the chunk's latents of that shape, normalised model space."""


def check_chain(sampler: ChunkSampler, history: History, num_chunks: int) -> None:
    """Refuses a chain that cannot be sampled, before any sampling starts.

    Raises:
        HeliosError: no chunks or too many, or a size that the sampler's pyramid cannot divide.
    """
    if not 1 <= num_chunks <= MOST_CHUNKS:
        raise HeliosError(f"num_chunks={num_chunks} must be at least 1, at most {MOST_CHUNKS}; one chunk is 33 frames.")
    check_size(history.width, history.height, sampler.size_multiple)


def sample_chunks(
    velocity_for: VelocityFactory,
    sampler: ChunkSampler,
    history: History,
    num_chunks: int,
    generator: torch.Generator,
    seed: int | None = None,
    guided: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int], OnStep] | None = None,
    kept: KeptChunks | None = None,
) -> Iterator[tuple[Tensor, History]]:
    """Yields each chunk's latents [B,16,9,H/8,W/8] (normalised model space) with the history after it.

    Args:
        generator: one generator for the whole video; per chunk it draws the noise, then the block noise.
        guided: whether the velocity includes guidance.
        device: where the network runs; noise is drawn on the generator's device and moved.
        dtype: the network's type.
        on_step: given a chunk's index, returns the callback for its steps.
        kept: finished chunks on disk; what it has is not sampled.
    """
    check_chain(sampler, history, num_chunks)

    def sample(history: History) -> tuple[Tensor, History]:
        noise = moved(draw_noise(history.chunk_shape, generator), device)
        callback = on_step(history.chunk) if on_step else None
        latents = sampler.sample(velocity_for(history), noise, generator, history.chunk, guided, callback, dtype)
        return latents, history.after(latents, generator, seed)

    for _ in range(num_chunks):
        if kept is None:
            latents, history = sample(history)
        else:
            latents, history = kept(history, partial(sample, history))
            assert history.random_state is not None
            generator.set_state(history.random_state)
        yield latents.to(device), history
