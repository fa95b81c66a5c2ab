"""Stage tables and step schedules, as Python floats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import HeliosError, shortened
from ..networks.settings import check_range, typed

# Dynamic shift: 0.5 at 256 tokens, 1.15 at 4096, linear between and beyond.
SHIFT_TOKENS = (256, 4096)
SHIFT_VALUES = (0.5, 1.15)
STAGE_SIGMA_MAX = 0.999
# Beyond it no noise has the wanted covariance.
GAMMA_MAX = 1 / 3 + 1e-9
# The released models have 1,000; tables are made of this length.
MOST_TIMESTEPS = 100_000


@dataclass(frozen=True)
class SchedulerConfig:
    """The released scheduler_config.json; the defaults are Distilled's."""

    num_train_timesteps: int = 1000
    stages: int = 3
    stage_range: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    gamma: float = 1 / 3
    use_dynamic_shifting: bool = True
    shift: float = 1.0
    time_shift_type: str = "linear"

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> SchedulerConfig:
        """Reads a scheduler_config.json."""
        return typed(cls, config, "scheduler_config.json")

    def __post_init__(self) -> None:
        if not self.use_dynamic_shifting or self.shift != 1.0:
            raise HeliosError(
                f"scheduler config use_dynamic_shifting={self.use_dynamic_shifting}, shift={self.shift} is not "
                "supported; every released Helios model uses true and 1.0."
            )
        check_range("scheduler config", "num_train_timesteps", self.num_train_timesteps, 1, MOST_TIMESTEPS)
        # Equal settings are one value, and so one key in a chunk store, however JSON wrote their numbers.
        bounds = tuple(map(float, self.stage_range))
        object.__setattr__(self, "stage_range", bounds)
        if self.stages < 1 or len(bounds) != self.stages + 1:
            raise HeliosError(
                f"stage_range={shortened(list(bounds))} does not fit stages={shortened(self.stages)}; give stages + 1 "
                "bounds from 0 to 1."
            )
        if bounds[0] != 0 or bounds[-1] != 1 or not all(a < b for a, b in pairwise(bounds)):
            raise HeliosError(f"stage_range={shortened(list(bounds))} must rise from 0 to 1; use the released thirds.")
        if not 0 < self.gamma <= GAMMA_MAX:
            raise HeliosError(f"gamma={self.gamma} must be above 0 and at most 1/3, the released value.")
        if self.time_shift_type not in ("linear", "exponential"):
            raise HeliosError(
                f"time_shift_type={shortened(self.time_shift_type)} is unknown; use 'linear' or 'exponential'."
            )


@dataclass(frozen=True)
class Stage:
    """One pyramid stage: its timestep range and how its start point is made from the previous stage's result.

    ``renoise_signal`` and ``renoise_noise`` are alpha and beta of start point = alpha*upsampled + beta*block
    noise; both are unused at stage 0. ``noise_start`` and ``noise_end`` are the shares of noise that a clip has at the
    stage's beginning and end.
    """

    timestep_max: float
    timestep_min: float
    renoise_signal: float
    renoise_noise: float
    noise_start: float
    noise_end: float


@dataclass(frozen=True)
class StepSchedule:
    """Steps of one stage: ``timesteps`` (n) for the network, ``sigmas`` (n+1, the last 0) for the solver."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]


def stage_tables(config: SchedulerConfig) -> tuple[Stage, ...]:
    """The stages' tables, coarsest first."""
    steps, gamma = config.num_train_timesteps, config.gamma
    sigmas = np.flip(1.0 - np.linspace(1, 1 / steps, steps + 1))[:-1]
    bounds = [min(max(int(x * steps), 0), steps) for x in config.stage_range]
    original_starts = [float(sigmas[i]) for i in bounds[:-1]]
    ends = [float(sigmas[i]) if i < steps else 0.0 for i in bounds[1:]]

    starts = list(original_starts)
    renoise = [(1.0, 0.0)]
    for i in range(1, config.stages):
        signal = 1 - original_starts[i]
        alpha = 1 / (math.sqrt(1 + 1 / gamma) * (1 - signal) + signal)
        starts[i] = 1 - alpha * signal
        renoise.append((alpha, alpha * (1 - signal) / math.sqrt(gamma)))

    distances = [start - end for start, end in zip(starts, ends, strict=True)]
    ratios = [sum(distances[:i]) / sum(distances) for i in range(config.stages)] + [0.9999999999999999]
    timesteps = sigmas * steps
    stages = []
    for i, (alpha, beta) in enumerate(renoise):
        first = min(float(timesteps[int(ratios[i] * steps)]), 999.0)
        last = float(timesteps[min(int(ratios[i + 1] * steps), steps - 1)])
        # The reference samples the range without its end point.
        grid = np.linspace(first, last, steps + 1)[:-1]
        stages.append(Stage(float(grid[0]), float(grid[-1]), alpha, beta, starts[i], ends[i]))
    return tuple(stages)


def dynamic_shift(tokens: int) -> float:
    """mu for a stage that starts from ``tokens`` noisy tokens, counted before its upsample."""
    slope = (SHIFT_VALUES[1] - SHIFT_VALUES[0]) / (SHIFT_TOKENS[1] - SHIFT_TOKENS[0])
    return tokens * slope + (SHIFT_VALUES[0] - slope * SHIFT_TOKENS[0])


def shifted(sigma: float, mu: float, kind: str) -> float:
    """Moves a sigma in (0, 1] towards 1: s' = m / (m + 1/s - 1), m = mu (linear) or e^mu (exponential)."""
    m = math.exp(mu) if kind == "exponential" else mu
    return m / (m + (1 / sigma - 1))


def dmd_schedule(config: SchedulerConfig, stage: Stage, steps: int, mu: float, amplified: bool) -> StepSchedule:
    """Distilled's steps of one stage; ``amplified`` doubles them."""
    points = 2 * steps + 1 if amplified else steps + 1
    grid = np.linspace(STAGE_SIGMA_MAX, _last_stage_sigma(config), points)
    return _scheduled(config, stage, [float(s) for s in grid[:-1]], mu)


def pyramid_schedule(config: SchedulerConfig, stage: Stage, steps: int, mu: float) -> StepSchedule:
    """Mid's steps of one stage: as Distilled's, with no point dropped."""
    grid = np.linspace(STAGE_SIGMA_MAX, _last_stage_sigma(config), steps)
    return _scheduled(config, stage, [float(s) for s in grid], mu)


def base_schedule(config: SchedulerConfig, steps: int, mu: float) -> StepSchedule:
    """Base's steps: one stage, timesteps 1000*sigma, not rounded."""
    sigmas = [shifted(float(s), mu, config.time_shift_type) for s in np.linspace(STAGE_SIGMA_MAX, 0, steps + 1)[:-1]]
    return StepSchedule(tuple(s * config.num_train_timesteps for s in sigmas), (*sigmas, 0.0))


def _last_stage_sigma(config: SchedulerConfig) -> float:
    """A stage's sigma range .999..0 is sampled without its end point, as its timesteps are."""
    return float(np.linspace(STAGE_SIGMA_MAX, 0, config.num_train_timesteps + 1)[-2])


def _scheduled(config: SchedulerConfig, stage: Stage, sigmas: list[float], mu: float) -> StepSchedule:
    sigmas = [shifted(s, mu, config.time_shift_type) for s in sigmas]
    span = stage.timestep_max - stage.timestep_min
    timesteps = [stage.timestep_min + s * span for s in sigmas]
    return StepSchedule(tuple(timesteps), (*sigmas, 0.0))
