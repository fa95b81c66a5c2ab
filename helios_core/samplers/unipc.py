"""UniPC of order 2: predictor and corrector on x0 with B(h) = e^h - 1 (arXiv 2302.04867, "bh2")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MIN_SIGMA = 1e-8  # stands in for the last sigma, 0, whose log-SNR is infinite
MAX_ORDER = 2


@dataclass(frozen=True)
class Update:
    """One linear update from the last x0: scale*x + gain*(x0 + older*(older x0 - x0) + newer*(newer x0 - x0)).

    Of the weights, ``older`` is 0 at order 1 and ``newer`` is 0 in a predictor.
    """

    scale: float
    gain: float
    older: float = 0.0
    newer: float = 0.0

    def apply(self, x: Tensor, x0: Tensor, older_x0: Tensor | None = None, newer_x0: Tensor | None = None) -> Tensor:
        slope = x0
        if older_x0 is not None and self.older:
            slope = slope + self.older * (older_x0 - x0)
        if newer_x0 is not None:
            slope = slope + self.newer * (newer_x0 - x0)
        return self.scale * x + self.gain * slope


class UniPC:
    """The solver over one schedule of ``sigmas`` (n+1, the last 0); make a new one for every stage.

    All coefficients are Python floats computed here, so that a step never waits for the device.
    """

    def __init__(self, sigmas: Sequence[float]):
        self._sigmas = tuple(sigmas)
        steps = len(self._sigmas) - 1
        orders = [min(MAX_ORDER, i + 1, steps - i) for i in range(steps)]
        self._predictors = [predictor(self._sigmas, i, order) for i, order in enumerate(orders)]
        self._correctors = [corrector(self._sigmas, i, order) for i, order in enumerate(orders)]
        self._step = 0
        self._latents: Tensor | None = None
        self._x0: Tensor | None = None
        self._older_x0: Tensor | None = None

    def step(self, latents: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, velocity) at the current sigma -> (latents at the next sigma, x0 predicted here)."""
        i = self._step
        x0 = latents - self._sigmas[i] * velocity
        if self._latents is not None and self._x0 is not None:
            latents = self._correctors[i - 1].apply(self._latents, self._x0, self._older_x0, x0)
        self._latents, self._older_x0, self._x0 = latents, self._x0, x0
        self._step += 1
        return self._predictors[i].apply(latents, x0, self._older_x0), x0


def predictor(sigmas: Sequence[float], i: int, order: int) -> Update:
    """UniP from sigma i to i+1."""
    scale, gain, _ = _first_order(sigmas, i)
    return Update(scale, gain, older=0.5 / _ratio(sigmas, i) if order == MAX_ORDER else 0.0)


def corrector(sigmas: Sequence[float], i: int, order: int) -> Update:
    """UniC of the step from sigma i to i+1, once x0 at i+1 is known; ``order`` is that of its predictor."""
    scale, gain, h = _first_order(sigmas, i)
    if order == 1:
        return Update(scale, gain, newer=0.5)
    # Weights (w, v) of the older and newer difference: w + v = b1 and w*r + v = b2.
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    b1 = phi_2 / phi_1
    b2 = 2 * (phi_2 / -h - 0.5) / phi_1
    r = _ratio(sigmas, i)
    older = (b1 - b2) / (1 - r)
    return Update(scale, gain, older=older / r, newer=b1 - older)


def _first_order(sigmas: Sequence[float], i: int) -> tuple[float, float, float]:
    """Factor of x, factor of x0, and the step in half log-SNR from sigma i to i+1."""
    now, following = max(sigmas[i], MIN_SIGMA), max(sigmas[i + 1], MIN_SIGMA)
    h = _log_snr(sigmas[i + 1]) - _log_snr(sigmas[i])
    return following / now, (1 - sigmas[i + 1]) * -math.expm1(-h), h


def _ratio(sigmas: Sequence[float], i: int) -> float:
    """The step before step i, against it: negative."""
    now = _log_snr(sigmas[i])
    return (_log_snr(sigmas[i - 1]) - now) / (_log_snr(sigmas[i + 1]) - now)


def _log_snr(sigma: float) -> float:
    return math.log(1 - sigma) - math.log(max(sigma, MIN_SIGMA))
