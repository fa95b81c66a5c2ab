"""The solvers that Base and Mid offer, and their step loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import HeliosError, shortened
from .step import Velocity, batched
from .unipc import UniPC

SOLVERS = ("unipc", "euler")


class Solver(Protocol):
    """Walks one schedule, a step per call."""

    def step(self, latents: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, velocity) at the current sigma -> (latents at the next sigma, x0 predicted here)."""
        ...


class Euler:
    """First order; the reference rounds its latents to the network's type, ``dtype``, at every step."""

    def __init__(self, sigmas: Sequence[float], dtype: torch.dtype):
        self._sigmas, self._dtype, self._step = tuple(sigmas), dtype, 0

    def step(self, latents: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        now, following = self._sigmas[self._step : self._step + 2]
        self._step += 1
        latents = latents.float()
        return (latents + (following - now) * velocity).to(self._dtype), latents - now * velocity


def check_solver(name: str) -> None:
    """Refuses an unknown solver by name."""
    if name not in SOLVERS:
        raise HeliosError(f"solver={shortened(name)} is unknown; use one of {', '.join(SOLVERS)}.")


def solve(
    name: str,
    sigmas: Sequence[float],
    timesteps: Sequence[float],
    velocity: Velocity,
    latents: Tensor,
    dtype: torch.dtype,
    report: Callable[[Tensor], None],
) -> Tensor:
    """Latents [B,16,T,h,w] at ``sigmas[0]`` -> latents at ``sigmas[-1]``.

    ``timesteps`` (n) go to the network; ``report`` gets every step's x0.
    """
    solver: Solver = UniPC(sigmas) if name == "unipc" else Euler(sigmas, dtype)
    for timestep in timesteps:
        latents, x0 = solver.step(latents, velocity(latents, batched(timestep, latents)))
        report(x0)
    return latents
