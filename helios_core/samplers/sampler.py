"""What the three samplers have in common."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .step import OnStep, Steer, Velocity


class ChunkSampler(Protocol):
    """Settings of one sampler; :meth:`sample` makes one chunk."""

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
        steer: Steer | None = None,
    ) -> Tensor:
        """Denoises one chunk.

        Args:
            velocity: the network, guidance included.
            noise: [B,16,9,H/8,W/8] float32 at full resolution.
            generator: draws the block noise of stages 1 and up, in that order.
            chunk: the chunk's index.
            guided: whether ``velocity`` has classifier-free guidance.
            dtype: the network's type, which the reference rounds some results to.
            steer: changes the velocity at every step; None: as the network says.

        Returns:
            The chunk's latents [B,16,9,H/8,W/8], normalised model space.
        """
