"""Our pipeline and diffusers' over the same random weights, at any size, without a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helios_core.checkpoint import from_diffusers
from helios_core.checkpoint.load import keeps_float32
from helios_core.checkpoint.vae_names import vae_from_diffusers
from helios_core.networks.transformer import HeliosTransformer
from helios_core.networks.transformer.fp8 import narrowed, use_fp8
from helios_core.networks.vae import VAEConfig, WanVAE
from helios_core.pipeline import HeliosPipeline
from helios_core.samplers import SchedulerConfig
from helios_core.variants import VARIANTS

TEXT_TOKENS = 512
WEIGHT_STD = 0.02


@dataclass
class Pair:
    """Both pipelines of one variant; ``text`` are prompt embeddings in the network's type."""

    ours: HeliosPipeline
    theirs: Any
    text: Tensor

    def call(self, width: int, height: int, chunks: int, steps: list[int], cfg: float, output: str) -> dict[str, Any]:
        """Keywords that both pipelines understand; Base takes the first of ``steps``."""
        named = "num_inference_steps" if self.ours.variant == "base" else "pyramid_num_inference_steps_list"
        arguments = {
            "prompt_embeds": self.text,
            "width": width,
            "height": height,
            "num_frames": 33 * chunks,
            "guidance_scale": cfg,
            named: steps[0] if self.ours.variant == "base" else steps,
            "output_type": output,
        }
        return arguments | ({"negative_prompt_embeds": self.text} if cfg > 1 else {})


def build_pair(
    variant: str,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    vae_width: int = VAEConfig.base_dim,
    **config: Any,
) -> Pair:
    """``config`` replaces settings of the 14B transformer; ``vae_dtype`` is ours, diffusers' VAE runs in float32."""
    from diffusers import AutoencoderKLWan, HeliosTransformer3DModel

    with torch.device(device):
        transformer = HeliosTransformer3DModel(**config).requires_grad_(False)
        vae = AutoencoderKLWan(base_dim=vae_width).requires_grad_(False).eval()
    randomise(transformer)
    kept = HeliosTransformer3DModel._keep_in_fp32_modules
    in_dtype(transformer, dtype, lambda name: any(part in name for part in kept))
    with torch.device("meta"):
        ours = HeliosTransformer(dtype=dtype, **config)
    ours.load_state_dict(from_diffusers(transformer.state_dict()), assign=True)
    our_vae = WanVAE(VAEConfig.from_diffusers(dict(vae.config)))
    our_vae.load_state_dict(vae_from_diffusers(vae.state_dict()))
    pipeline = HeliosPipeline(
        transformer=ours.requires_grad_(False).eval(),
        vae=our_vae.to(device, vae_dtype).eval(),
        text_encoder=no_text_encoder,
        variant=variant,
        scheduler=SchedulerConfig.from_dict(VARIANTS[variant].scheduler),
        zero_star=variant == "mid",
        device=device,
        dtype=dtype,
    )
    text = torch.randn(1, TEXT_TOKENS, ours.config.text_dim, generator=torch.Generator().manual_seed(1))
    return Pair(pipeline, reference_pipeline(variant, transformer, vae), text.to(device, dtype))


def reference_pipeline(variant: str, transformer: Any, vae: Any) -> Any:
    """Diffusers' pipeline of a variant around these parts."""
    import diffusers

    settings = dict(VARIANTS[variant].scheduler)
    scheduler = getattr(diffusers, settings.pop("_class_name")).from_config(settings)
    parts = {"tokenizer": None, "text_encoder": None, "vae": vae, "transformer": transformer, "scheduler": scheduler}
    if variant == "base":
        pipeline = diffusers.HeliosPipeline(**parts)
    else:
        flags = {"is_cfg_zero_star": variant == "mid", "is_distilled": variant == "distilled"}
        from .oracle import ReferencePyramid

        pipeline = ReferencePyramid(**parts, **flags)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def other_variant(pair: Pair, variant: str) -> Pair:
    """The same weights under another variant's sampler."""
    ours = HeliosPipeline(
        transformer=pair.ours.transformer,
        vae=pair.ours.vae,
        text_encoder=no_text_encoder,
        variant=variant,
        scheduler=SchedulerConfig.from_dict(VARIANTS[variant].scheduler),
        zero_star=variant == "mid",
        device=pair.ours.device,
        dtype=pair.ours.dtype,
    )
    return Pair(ours, reference_pipeline(variant, pair.theirs.transformer, pair.theirs.vae), pair.text)


def narrow_in_place(transformer: HeliosTransformer) -> None:
    """Gives a loaded transformer 8-bit matrix products."""
    weights = transformer.state_dict()
    for name in use_fp8(transformer):
        content = narrowed(weights.pop(f"{name}.weight")) | {"bias": weights[f"{name}.bias"]}
        transformer.get_submodule(name).load_state_dict(content, assign=True)


def no_text_encoder() -> Any:
    raise RuntimeError("a benchmark passes prompt_embeds")


def randomise(model: nn.Module) -> None:
    """Small weights, so that activations stay finite through any number of blocks."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, WEIGHT_STD)


def in_dtype(model: nn.Module, dtype: torch.dtype, stays_float32: Callable[[str], bool] = keeps_float32) -> nn.Module:
    """The model in ``dtype`` but for the parts that the reference keeps in float32 (by default of our names)."""
    for name, parameter in model.named_parameters():
        if not stays_float32(name):
            parameter.data = parameter.data.to(dtype)
    return model.eval()
