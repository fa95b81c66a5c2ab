"""SAMPLER nodes: the solvers of ``helios_core.samplers`` behind core's Sampler interface."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..helios_core.errors import HeliosError, shortened
from ..helios_core.samplers import (
    SOLVERS,
    BaseSampler,
    DMDSampler,
    Progress,
    PyramidSampler,
    SchedulerConfig,
    draw_noise,
)
from ..helios_core.samplers.guidance import guide_zero_star
from ..helios_core.take.chunks import ChunkSampler, check_chain
from ..helios_core.take.history import History
from .adapters.model import HISTORY_KEY, HeliosModel, HeliosSampling
from .adapters.prepared import PREPARED_KEY, PreparedInputs

# Denoising sigma is the timestep in thousandths, for core's time ranges and patches.
TIMESTEPS = 1000.0


class HeliosSampler(comfy.samplers.Sampler):
    """One chunk from full-resolution noise; also usable from core's SamplerCustomAdvanced.

    ``generator`` draws the block noise; without one it continues the stream that core's seeded noise began.
    The normalised result of the last run is ``chunk_latents``: core returns it in VAE space.
    """

    def __init__(self, settings: ChunkSampler, generator: torch.Generator | None = None):
        self.settings = settings
        self.generator = generator
        self.chunk_latents: Tensor | None = None

    def with_generator(self, generator: torch.Generator) -> HeliosSampler:
        """A sampler with the same settings for one run; this one stays as it is."""
        return HeliosSampler(self.settings, generator)

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[int, Tensor, Tensor, int], None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Called by core once conditions are ready; ``sigmas`` is core's schedule and is not used."""
        model = model_wrap.inner_model
        check_model(model, model.model_sampling, self.settings)
        check_latents(latent_image, denoise_mask)
        history = _history_of(model_wrap, noise)
        check_chain(self.settings, history, 1)
        check_devices(extra_args["model_options"])
        _keep_prepared(model_wrap, extra_args)
        generator = self.generator or _continued_generator(extra_args.get("seed"), noise)
        guided = model_wrap.cfg > 1
        if guided and self.settings.zero_star:
            extra_args["model_options"]["sampler_cfg_function"] = _zero_star

        def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
            exact = float(timestep[0])
            sigma = torch.full((latents.shape[0],), exact / TIMESTEPS, device=latents.device)
            with model.model_sampling.velocity_at(exact):
                return model_wrap(latents, sigma, **extra_args)

        def on_step(progress: Progress) -> None:
            if callback is not None:
                callback(progress.step - 1, progress.x0, progress.x0, progress.total)

        self.chunk_latents = self.settings.sample(
            velocity, noise, generator, history.chunk, guided, on_step, model.get_dtype_inference()
        ).float()
        return self.chunk_latents


def _zero_star(arguments: dict[str, Any]) -> Tensor:
    """CFG-Zero* as core wants it: what the guided prediction takes away from its input."""
    conditional, unconditional = arguments["cond_denoised"], arguments["uncond_denoised"]
    return arguments["input"] - guide_zero_star(conditional, unconditional, arguments["cond_scale"])


def check_model(model: Any, model_sampling: Any, settings: ChunkSampler) -> None:
    """Refuses models that are not Helios, or whose variant was not trained for this sampler.

    ``model_sampling`` is given apart because a MODEL carries its replacement as a patch until it is loaded.
    """
    if not isinstance(model, HeliosModel):
        raise HeliosError(f"model is a {type(model).__name__}, not Helios; load it with the Helios Model Loader node.")
    if not isinstance(model_sampling, HeliosSampling):
        raise HeliosError(
            "model has its sampling replaced (a ModelSampling node); remove that node: Helios samplers compute "
            "their own shift."
        )
    if model.variant != settings.variant:
        raise HeliosError(
            f"model is Helios {model.variant} but the sampler is for {settings.variant}; connect the "
            f"{SAMPLER_OF_VARIANT[model.variant]} node."
        )


SAMPLER_OF_VARIANT = {
    "base": "Helios Base Sampler",
    "mid": "Helios Pyramid Sampler",
    "distilled": "Helios DMD Sampler",
}


def check_latents(latent_image: Tensor | None, denoise_mask: Tensor | None) -> None:
    """Refuses what a chunk cannot start from; the model has seen to its noise."""
    if denoise_mask is not None:
        raise HeliosError("latent_image has a noise mask; Helios cannot inpaint, remove the mask.")
    if latent_image is not None and torch.count_nonzero(latent_image):
        raise HeliosError("latent_image is not empty; Helios starts every chunk from noise, use an empty latent.")


def check_devices(model_options: dict[str, Any]) -> None:
    """Refuses what splits one chunk over devices."""
    if "multigpu_clones" in model_options:
        raise HeliosError("model is split over several GPUs, which Helios samplers do not support; remove that node.")


def _history_of(model_wrap: Any, noise: Tensor) -> History:
    for cond in model_wrap.conds["positive"]:
        if HISTORY_KEY in cond:
            return cond[HISTORY_KEY]
    batch, _, _, h, w = noise.shape
    return History.empty(w * 8, h * 8, batch)


def _keep_prepared(model_wrap: Any, extra_args: dict[str, Any]) -> None:
    """Prepared inputs live as long as this run unless a chain supplied longer-lived ones.

    Scheduled LoRA hooks change weights between steps, so nothing may be kept then.
    """
    options = extra_args["model_options"].setdefault("transformer_options", {})
    if any("hooks" in cond for conds in model_wrap.conds.values() for cond in conds):
        options.pop(PREPARED_KEY, None)
    else:
        options.setdefault(PREPARED_KEY, PreparedInputs())


def _continued_generator(seed: int | None, noise: Tensor) -> torch.Generator:
    """The CPU generator as it stands once core has drawn ``noise`` from ``seed``."""
    generator = torch.Generator("cpu").manual_seed(seed or 0)
    draw_noise(tuple(noise.shape), generator)
    return generator


LONGEST_LIST, LONGEST_NUMBER = 1000, 100
_LONG_EXPONENT = re.compile(r"[eE][-+]?[\d_]{4,}")


def steps_input(default: str, released: str) -> io.String.Input:
    return io.String.Input(
        "steps",
        default=default,
        tooltip=f"Steps of each stage, coarse to fine; as many numbers as there are stages. {released}",
    )


def stage_inputs() -> list[io.Input]:
    """How a pyramid divides the noise range, with the released defaults."""
    return [
        io.String.Input(
            "stage_range",
            default="",
            advanced=True,
            tooltip="Where the stages begin and end, from 0 to 1, one number more than stages: '0, 0.33, 0.66, 1'. "
            "Empty: equal parts, as released.",
        ),
        io.String.Input(
            "gamma",
            default="1/3",
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


def pyramid_config(steps: tuple[int, ...], stage_range: str, gamma: str, time_shift_type: str) -> SchedulerConfig:
    """The scheduler of a pyramid with one stage for each entry of ``steps``."""
    stages = len(steps)
    if not stages:
        raise HeliosError("steps is empty; write it like '2, 2, 2', one number per stage.")
    bounds = numbers("stage_range", stage_range, float) or tuple(i / stages for i in range(stages + 1))
    try:
        # Fractions are exact: an exponent of many digits would be worked out for minutes.
        if len(gamma) > LONGEST_NUMBER or _LONG_EXPONENT.search(gamma):
            raise ValueError
        exact = float(Fraction(gamma.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise HeliosError(f"gamma={shortened(gamma)} is not a number; write it like '1/3' or '0.25'.") from None
    return SchedulerConfig(stages=stages, stage_range=bounds, gamma=exact, time_shift_type=time_shift_type)


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
                steps_input("2, 2, 2", "Released: 2, 2, 2; 1, 1, 1 is faster."),
                io.Boolean.Input(
                    "amplify_first_chunk",
                    default=True,
                    tooltip="Twice the steps in chunk 0, on which the whole video builds. Released: on.",
                ),
                *stage_inputs(),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect it to Sample Chunk, Chunk Chain or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, steps: str, amplify_first_chunk: bool, stage_range: str, gamma: str) -> io.NodeOutput:
        counts = numbers("steps", steps, int)
        scheduler = pyramid_config(counts, stage_range, gamma, "linear")
        return io.NodeOutput(HeliosSampler(DMDSampler(counts, amplify_first_chunk, scheduler)))


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
                steps_input("20, 20, 20", "Released: 20, 20, 20."),
                solver_input(),
                io.Boolean.Input(
                    "cfg_zero_star",
                    default=True,
                    tooltip="Scales the unconditional prediction to fit the conditional one (CFG-Zero*). Used where "
                    "cfg is above 1. Released: on.",
                ),
                io.Boolean.Input(
                    "zero_init",
                    default=True,
                    tooltip="With CFG-Zero*, the first steps of the coarsest stage change nothing. Released: on.",
                ),
                io.Int.Input(
                    "zero_steps",
                    default=1,
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
    def execute(
        cls,
        steps: str,
        solver: str,
        cfg_zero_star: bool,
        zero_init: bool,
        zero_steps: int,
        stage_range: str,
        gamma: str,
    ) -> io.NodeOutput:
        counts = numbers("steps", steps, int)
        scheduler = pyramid_config(counts, stage_range, gamma, "exponential")
        return io.NodeOutput(
            HeliosSampler(PyramidSampler(counts, solver, cfg_zero_star, zero_init, zero_steps, scheduler))
        )


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
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps of each chunk. Released: 50."),
                solver_input(),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect it to Sample Chunk, Chunk Chain or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, steps: int, solver: str) -> io.NodeOutput:
        return io.NodeOutput(HeliosSampler(BaseSampler((steps,), solver)))


def solver_input() -> io.Combo.Input:
    return io.Combo.Input(
        "solver",
        options=list(SOLVERS),
        default="unipc",
        advanced=True,
        tooltip="unipc is the released one, of second order; euler is simpler and needs more steps.",
    )
