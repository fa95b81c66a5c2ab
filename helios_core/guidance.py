"""Classifier-free guidance over velocities."""

from __future__ import annotations

from torch import Tensor

from .samplers import Velocity


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """u + scale*(c - u), evaluated one after the other as the reference does (DESIGN section 6.7)."""

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        c, u = conditional(latents, timestep), unconditional(latents, timestep)
        return u + scale * (c - u)

    return velocity
