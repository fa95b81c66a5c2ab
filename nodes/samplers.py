"""SAMPLER nodes, one per variant."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..helios_core.samplers import SOLVERS
from ..helios_core.variants import BASE, DISTILLED, MID, Variant
from .adapters.graph_checks import check_node
from .adapters.sampler import HeliosSampler
from .adapters.sampler_settings import (
    RELEASED_GAMMA,
    RELEASED_SOLVER,
    base_settings,
    dmd_settings,
    pyramid_settings,
    steps_text,
)


def steps_input(variant: Variant, more: str = "") -> io.String.Input:
    released = steps_text(variant)
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
    def validate_inputs(cls) -> bool:
        return check_node()

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
    def validate_inputs(cls) -> bool:
        return check_node()

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
    def validate_inputs(cls) -> bool:
        return check_node()

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
