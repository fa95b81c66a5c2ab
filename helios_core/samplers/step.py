"""What every sampler shares: the network as a function, and the report of a finished step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Stage

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents [B,16,T,h,w], timestep [B]) -> velocity of the same shape as the latents."""

Steer = Callable[[Tensor, Tensor, float, Stage], Tensor]
"""(latents, velocity, sigma within the stage, stage) -> the velocity that is used in its place."""


@dataclass(frozen=True)
class Progress:
    """One finished step: ``step`` of ``total`` in this chunk, its ``stage``, and the x0 predicted there."""

    step: int
    total: int
    stage: int
    x0: Tensor


OnStep = Callable[[Progress], None]


class StepReporter:
    """Numbers a chunk's steps across its stages for ``on_step``."""

    def __init__(self, total: int, on_step: OnStep | None):
        self._total, self._on_step, self._done = total, on_step, 0

    def report(self, stage: int, x0: Tensor) -> None:
        self._done += 1
        if self._on_step is not None:
            self._on_step(Progress(self._done, self._total, stage, x0))


def batched(timestep: float, latents: Tensor) -> Tensor:
    """The network's timestep input [B]: int64 from an int (pyramid stages), float32 from a float (Base)."""
    dtype = torch.int64 if isinstance(timestep, int) else torch.float32
    return torch.full(latents.shape[:1], timestep, dtype=dtype, device=latents.device)


def steered(velocity: Velocity, steer: Steer | None, sigmas: Sequence[float], stage: Stage) -> Velocity:
    """``velocity`` with ``steer`` over it, for one call at each of ``sigmas``."""
    if steer is None:
        return velocity
    left = iter(sigmas)

    def changed(latents: Tensor, timestep: Tensor) -> Tensor:
        return steer(latents, velocity(latents, timestep), next(left), stage)

    return changed
