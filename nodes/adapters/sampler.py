"""SAMPLER: a sampler of ``helios_core.samplers`` behind core's Sampler interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...helios_core.errors import HeliosError
from ...helios_core.samplers import ChunkSampler, Progress, draw_noise
from ...helios_core.samplers.guidance import guide_zero_star
from ...helios_core.take.film import check_film
from ...helios_core.take.history import History
from ...helios_core.variants import LATENT_SCALE, VARIANTS
from .model import HISTORY_KEY, TIMESTEP_KEY, HeliosModel, HeliosSampling
from .prepared import PREPARED_KEY, PreparedInputs
from .step_cache import StageCaches

# Denoising sigma is the timestep in thousandths, for core's time ranges and patches.
TIMESTEPS = 1000.0
CFG_FUNCTION = "sampler_cfg_function"


class HeliosSampler(comfy.samplers.Sampler):
    """One chunk from full-resolution noise; also usable from core's SamplerCustomAdvanced.

    ``generator`` draws the block noise; without one it continues the stream that core's seeded noise began.
    """

    def __init__(self, settings: ChunkSampler, generator: torch.Generator | None = None):
        self.settings = settings
        self.generator = generator

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
        """The chunk's latents, normalised model space.

        Called by core once conditions are ready; ``sigmas`` is core's schedule and is not used.
        """
        model, is_guided = model_wrap.inner_model, model_wrap.cfg > 1
        check_model(model, model.model_sampling, self.settings)
        check_latents(latent_image, denoise_mask)
        history = _history_of(model_wrap, noise)
        check_film(self.settings, history, 1)
        options = {**extra_args["model_options"]}
        check_options(options, self.settings, is_guided)
        if is_guided and self.settings.zero_star:
            options[CFG_FUNCTION] = _zero_star
        transformer_options = _with_prepared(model_wrap, options.get("transformer_options", {}))
        caches = StageCaches(transformer_options, model.model_sampling)

        def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
            exact = float(timestep[0])
            sigma = torch.full((latents.shape[0],), exact / TIMESTEPS, device=latents.device)
            options["transformer_options"] = {**transformer_options, **caches.options(latents), TIMESTEP_KEY: exact}
            predicted = model_wrap(latents, sigma, **{**extra_args, "model_options": options})
            caches.count()
            return predicted

        def on_step(progress: Progress) -> None:
            if callback is not None:
                callback(progress.step - 1, progress.x0, progress.x0, progress.total)

        generator = self.generator or _continued_generator(extra_args.get("seed"), noise)
        return self.settings.sample(
            velocity, noise, generator, history.chunk, is_guided, on_step, model.get_dtype_inference()
        ).float()


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
    check_variant(model.variant, settings.variant)


def check_variant(model: str, sampler: str) -> None:
    """Refuses a sampler of another variant than the model's."""
    if model != sampler:
        raise HeliosError(
            f"model is Helios {model} but the sampler is for {sampler}; connect the "
            f"Helios {VARIANTS[model].sampler} Sampler node."
        )


def foreign_sampler(kind: str) -> HeliosError:
    """What to say of a SAMPLER that makes no chunk."""
    return HeliosError(f"sampler is a {kind}, not a Helios sampler; connect a Helios sampler node.")


def check_options(model_options: dict[str, Any], settings: ChunkSampler, is_guided: bool) -> None:
    """Refuses what other nodes put on a MODEL and a chunk cannot follow."""
    if "multigpu_clones" in model_options:
        raise HeliosError("model is split over several GPUs, which Helios samplers do not support; remove that node.")
    other = model_options.get(CFG_FUNCTION)
    if other is not None and is_guided and settings.zero_star:
        name = f"{getattr(other, '__module__', '?')}.{getattr(other, '__qualname__', type(other).__name__)}"
        raise HeliosError(
            f"model has its guidance replaced by another node ({name}), and the sampler brings CFG-Zero*; remove that "
            "node, or turn cfg_zero_star off."
        )


def check_latents(latent_image: Tensor | None, denoise_mask: Tensor | None) -> None:
    """Refuses what a chunk cannot start from; the model has seen to its noise."""
    if denoise_mask is not None:
        raise HeliosError("latent_image has a noise mask; Helios cannot inpaint, remove the mask.")
    if latent_image is not None and torch.count_nonzero(latent_image):
        raise HeliosError("latent_image is not empty; Helios starts every chunk from noise, use an empty latent.")


def _history_of(model_wrap: Any, noise: Tensor) -> History:
    for cond in model_wrap.conds["positive"]:
        if HISTORY_KEY in cond:
            return cond[HISTORY_KEY]
    batch, _, _, h, w = noise.shape
    return History.empty(w * LATENT_SCALE, h * LATENT_SCALE, batch)


def _with_prepared(model_wrap: Any, transformer_options: dict[str, Any]) -> dict[str, Any]:
    """The options with prepared inputs, which live as long as this run unless the guider supplied longer-lived ones.

    Scheduled LoRA hooks change weights between steps, so nothing may be kept then.
    """
    if any("hooks" in cond for conds in model_wrap.conds.values() for cond in conds):
        return {key: value for key, value in transformer_options.items() if key != PREPARED_KEY}
    return {PREPARED_KEY: PreparedInputs(), **transformer_options}


def _continued_generator(seed: int | None, noise: Tensor) -> torch.Generator:
    """The CPU generator as it stands once core has drawn ``noise`` from ``seed``."""
    generator = torch.Generator("cpu").manual_seed(seed or 0)
    draw_noise(tuple(noise.shape), generator)
    return generator
