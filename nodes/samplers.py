"""SAMPLER nodes: the solvers of ``helios_core.samplers`` behind core's Sampler interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..helios_core.chain import ChunkSampler, check_chain
from ..helios_core.errors import HeliosError
from ..helios_core.history import CHUNK_LATENT_FRAMES, History
from ..helios_core.samplers import DMDSampler, Progress, draw_noise
from .model import HISTORY_KEY, HeliosModel, HeliosSampling
from .prepared import PREPARED_KEY, PreparedInputs

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
        check_latents(noise, latent_image, denoise_mask)
        history = _history_of(model_wrap, noise)
        check_chain(self.settings, history, 1)
        _keep_prepared(model_wrap, extra_args)
        generator = self.generator or _continued_generator(extra_args.get("seed"), noise)

        def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
            exact = float(timestep[0])
            sigma = torch.full((latents.shape[0],), exact / TIMESTEPS, device=latents.device)
            with model.model_sampling.velocity_at(exact):
                return model_wrap(latents, sigma, **extra_args)

        def on_step(progress: Progress) -> None:
            if callback is not None:
                callback(progress.step - 1, progress.x0, progress.x0, progress.total)

        self.chunk_latents = self.settings.sample(
            velocity, noise, generator, history.chunk, on_step, model.get_dtype_inference()
        ).float()
        return self.chunk_latents


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


def check_latents(noise: Tensor, latent_image: Tensor | None, denoise_mask: Tensor | None) -> None:
    """Refuses what a chunk cannot start from."""
    if noise.ndim != 5 or noise.shape[2] != CHUNK_LATENT_FRAMES:
        raise HeliosError(
            f"latent_image has shape {list(noise.shape)}; one Helios chunk is [B,16,9,H/8,W/8], a length of 33."
        )
    if denoise_mask is not None:
        raise HeliosError("latent_image has a noise mask; Helios cannot inpaint, remove the mask.")
    if latent_image is not None and torch.count_nonzero(latent_image):
        raise HeliosError("latent_image is not empty; Helios starts every chunk from noise, use an empty latent.")


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
                io.Int.Input(
                    f"steps_stage_{stage}",
                    default=2,
                    min=1,
                    max=100,
                    tooltip=f"Steps at stage {stage}, {size}. Released: 2; 1 is faster.",
                )
                for stage, size in enumerate(("a quarter of the size", "half of the size", "full size"))
            ]
            + [
                io.Boolean.Input(
                    "amplify_first_chunk",
                    default=True,
                    tooltip="Twice the steps in chunk 0, on which the whole video builds. Released: on.",
                )
            ],
            outputs=[io.Sampler.Output(tooltip="Connect it to Sample Chunk, Chunk Chain or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, steps_stage_0: int, steps_stage_1: int, steps_stage_2: int, amplify_first_chunk: bool
    ) -> io.NodeOutput:
        steps = (steps_stage_0, steps_stage_1, steps_stage_2)
        return io.NodeOutput(HeliosSampler(DMDSampler(steps, amplify_first_chunk)))
