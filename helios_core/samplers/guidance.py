"""Classifier-free guidance over velocities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from . import Velocity

Pair = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""As :data:`Velocity`, for the conditional and the unconditional one."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: u + scale*(c - u)."""
    return unconditional + scale * (conditional - unconditional)


def guide_zero_star(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """CFG-Zero* (arXiv 2503.18886): the unconditional velocity is first scaled to fit the conditional one.

    a*u + scale*(c - a*u) with a = <c,u>/(|u|^2 + 1e-8) per sample [B,...], in float32.
    """
    c, u = conditional.float().flatten(1), unconditional.float().flatten(1)
    fit = (c * u).sum(1) / (u.square().sum(1) + 1e-8)
    scaled = unconditional * fit.view(-1, *[1] * (unconditional.ndim - 1)).to(conditional.dtype)
    return scaled + scale * (conditional - scaled)


def guided(pair: Pair, scale: float, zero_star: bool = False) -> Velocity:
    """A velocity with guidance, from both of its parts."""
    combine = guide_zero_star if zero_star else guide

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        conditional, unconditional = pair(latents, timestep)
        return combine(conditional, unconditional, scale)

    return velocity
