"""What the sampler nodes make of their inputs, and of those that a graph leaves out."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from ...helios_core.errors import HeliosError, shortened
from ...helios_core.samplers import BaseSampler, DMDSampler, PyramidSampler, SchedulerConfig
from ...helios_core.variants import BASE, DISTILLED, MID, Variant

RELEASED_GAMMA, RELEASED_SOLVER = "1/3", "unipc"
LONGEST_LIST, LONGEST_NUMBER = 1000, 100
_LONG_EXPONENT = re.compile(r"[eE][-+]?[\d_]{4,}")


def steps_text(variant: Variant) -> str:
    """Steps of each stage as the sampler nodes write them: ``"2, 2, 2"``."""
    return ", ".join(map(str, variant.steps))


def numbers(name: str, text: str, kind: type) -> tuple:
    """``"2, 2, 2"`` -> (2, 2, 2)."""
    try:
        if len(text) > LONGEST_LIST:
            raise ValueError
        return tuple(kind(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError:
        raise HeliosError(f"{name}={shortened(text)} is not a list of numbers; write it like '2, 2, 2'.") from None


def pyramid_config(variant: Variant, steps: tuple[int, ...], stage_range: str, gamma: str) -> SchedulerConfig:
    """The variant's scheduler for a pyramid with one stage for each entry of ``steps``."""
    stages, trained = len(steps), len(variant.steps)
    if not stages:
        raise HeliosError("steps is empty; write it like '2, 2, 2', one number per stage.")
    bounds = numbers("stage_range", stage_range, float)
    if not bounds and stages != trained:
        raise HeliosError(
            f"steps={shortened(', '.join(map(str, steps)))} is for {stages} stages, and Helios {variant.name} was "
            f"trained with {trained}; give {trained} numbers, or the bounds of your stages in stage_range."
        )
    bounds = bounds or tuple(i / stages for i in range(stages + 1))
    try:
        # Fractions are exact: an exponent of many digits would be worked out for minutes.
        if len(gamma) > LONGEST_NUMBER or _LONG_EXPONENT.search(gamma):
            raise ValueError
        exact = float(Fraction(gamma.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise HeliosError(f"gamma={shortened(gamma)} is not a number; write it like '1/3' or '0.25'.") from None
    released = SchedulerConfig.from_dict(variant.scheduler)
    return replace(released, stages=stages, stage_range=bounds, gamma=exact)


def dmd_settings(
    steps: str = steps_text(DISTILLED),
    amplify_first_chunk: bool = True,
    stage_range: str = "",
    gamma: str = RELEASED_GAMMA,
) -> DMDSampler:
    """What Helios DMD Sampler makes of its inputs, and of those that a graph leaves out."""
    counts = numbers("steps", steps, int)
    return DMDSampler(counts, amplify_first_chunk, pyramid_config(DISTILLED, counts, stage_range, gamma))


def pyramid_settings(
    steps: str = steps_text(MID),
    solver: str = RELEASED_SOLVER,
    cfg_zero_star: bool = True,
    zero_init: bool = True,
    zero_steps: int = 1,
    stage_range: str = "",
    gamma: str = RELEASED_GAMMA,
) -> PyramidSampler:
    """As :func:`dmd_settings`, for Helios Pyramid Sampler."""
    counts = numbers("steps", steps, int)
    config = pyramid_config(MID, counts, stage_range, gamma)
    return PyramidSampler(counts, solver, cfg_zero_star, zero_init, zero_steps, config)


def base_settings(steps: int = BASE.steps[0], solver: str = RELEASED_SOLVER) -> BaseSampler:
    """As :func:`dmd_settings`, for Helios Base Sampler."""
    return BaseSampler((steps,), solver)
