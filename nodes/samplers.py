"""SAMPLER nodes, one per variant."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

from comfy_api.latest import io

from ..helios_core.errors import HeliosError, shortened
from ..helios_core.samplers import SOLVERS, BaseSampler, DMDSampler, PyramidSampler, SchedulerConfig
from ..helios_core.variants import BASE, DISTILLED, MID, Variant
from .adapters.sampler import HeliosSampler

RELEASED_GAMMA, RELEASED_SOLVER = "1/3", "unipc"
LONGEST_LIST, LONGEST_NUMBER = 1000, 100
_LONG_EXPONENT = re.compile(r"[eE][-+]?[\d_]{4,}")


def _text(variant: Variant) -> str:
    """Steps of each stage as the sampler nodes write them: ``"2, 2, 2"``."""
    return ", ".join(map(str, variant.steps))


def steps_input(variant: Variant, more: str = "") -> io.String.Input:
    released = _text(variant)
    return io.String.Input(
        "steps",
        default=released,
        optional=True,
        tooltip="Steps of each stage, coarse to fine; as many numbers as there are stages. "
        f"Released: {released}{more}.",
    )


def stage_inputs() -> list[io.Input]:
    """How a pyramid divides the noise range, with the released defaults."""
    return [
        io.String.Input(
            "stage_range",
            default="",
            optional=True,
            advanced=True,
            tooltip="Where the stages begin and end, from 0 to 1, one number more than stages: '0, 0.33, 0.66, 1'. "
            "Empty: equal parts, as released.",
        ),
        io.String.Input(
            "gamma",
            default=RELEASED_GAMMA,
            optional=True,
            advanced=True,
            # Text, because number widgets round 1/3 to their step, and the video would be another.
            tooltip="Correlation of the noise added between stages, a fraction or a number. Released: 1/3, its highest "
            "value.",
        ),
    ]


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
    steps: str = _text(DISTILLED),
    amplify_first_chunk: bool = True,
    stage_range: str = "",
    gamma: str = RELEASED_GAMMA,
) -> DMDSampler:
    """What Helios DMD Sampler makes of its inputs, and of those that a graph leaves out."""
    counts = numbers("steps", steps, int)
    return DMDSampler(counts, amplify_first_chunk, pyramid_config(DISTILLED, counts, stage_range, gamma))


def pyramid_settings(
    steps: str = _text(MID),
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


class HeliosDMDSampler(io.ComfyNode):
    """The sampler of Helios Distilled: a few steps in each of three pyramid stages."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosDMDSampler",
            display_name="Helios DMD Sampler (Distilled)",
            category="Helios/sampling",
            description="The sampler of Helios Distilled: a few steps in each of three pyramid stages, coarse to fine.",
            search_aliases=["helios distilled sampler", "helios sampler", "dmd"],
            inputs=[
                steps_input(DISTILLED, "; 1, 1, 1 is faster"),
                io.Boolean.Input(
                    "amplify_first_chunk",
                    default=True,
                    optional=True,
                    tooltip="Twice the steps in chunk 0, on which the whole video builds. Released: on.",
                ),
                *stage_inputs(),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect it to Sample Chunk, Chunk Chain or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(HeliosSampler(dmd_settings(**inputs)))


class HeliosPyramidSampler(io.ComfyNode):
    """The sampler of Helios Mid: many steps in each of three pyramid stages."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosPyramidSampler",
            display_name="Helios Pyramid Sampler (Mid)",
            category="Helios/sampling",
            description="The sampler of Helios Mid: many steps in each of three pyramid stages, coarse to fine, with "
            "CFG-Zero* guidance.",
            search_aliases=["helios mid sampler", "helios sampler", "cfg zero star"],
            inputs=[
                steps_input(MID),
                solver_input(),
                io.Boolean.Input(
                    "cfg_zero_star",
                    default=True,
                    optional=True,
                    tooltip="Scales the unconditional prediction to fit the conditional one (CFG-Zero*). Used where "
                    "cfg is above 1. Released: on.",
                ),
                io.Boolean.Input(
                    "zero_init",
                    default=True,
                    optional=True,
                    tooltip="With CFG-Zero*, the first steps of the coarsest stage change nothing. Released: on.",
                ),
                io.Int.Input(
                    "zero_steps",
                    default=1,
                    optional=True,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="The last of those first steps, counted from 0: 1 means two steps. Released: 1.",
                ),
                *stage_inputs(),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect it to Sample Chunk, Chunk Chain or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(HeliosSampler(pyramid_settings(**inputs)))


class HeliosBaseSampler(io.ComfyNode):
    """The sampler of Helios Base: many steps at full size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosBaseSampler",
            display_name="Helios Base Sampler",
            category="Helios/sampling",
            description="The sampler of Helios Base: many steps at full size.",
            search_aliases=["helios sampler", "helios unipc"],
            inputs=[
                io.Int.Input(
                    "steps",
                    default=BASE.steps[0],
                    optional=True,
                    min=1,
                    max=1000,
                    tooltip=f"Steps of each chunk. Released: {BASE.steps[0]}.",
                ),
                solver_input(),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect it to Sample Chunk, Chunk Chain or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(HeliosSampler(base_settings(**inputs)))


def solver_input() -> io.Combo.Input:
    return io.Combo.Input(
        "solver",
        options=list(SOLVERS),
        default=RELEASED_SOLVER,
        optional=True,
        advanced=True,
        tooltip="unipc is the released one, of second order; euler is simpler and needs more steps.",
    )
