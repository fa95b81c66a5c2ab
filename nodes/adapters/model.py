"""Helios as a native ComfyUI model: configuration, BaseModel, and the network core calls."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.memory_management
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import get_attention_function, optimized_attention
from torch import Tensor

from ...helios_core.checkpoint.load import check_state_dict, keeps_float32, place
from ...helios_core.checkpoint.source import (
    INFO_TENSOR,
    info_tensor,
    open_transformer,
)
from ...helios_core.errors import HeliosError
from ...helios_core.networks.transformer import HeliosTransformer, TransformerConfig
from ...helios_core.take.history import History
from ...helios_core.variants import CHUNK_LATENT_FRAMES, LATENT_SCALE, VARIANTS
from .model_weights import read_state_dict, unpacked_outside_blocks
from .operations import with_held_elsewhere
from .prepared import PREPARED_KEY, PreparedInputs
from .warnings import warn

# Core's own figure for Wan, whose blocks these are: activation memory in proportion to the width.
MEMORY_PER_DIM = 1 / 2222
# e^mu of the released exponential shift at 384x640, for core's own schedulers; Helios samplers do their own.
SHIFT = 6.8
HISTORY_KEY = "helios_history"
# In transformer_options: the exact timestep at which a Helios sampler wants the velocity.
TIMESTEP_KEY = "helios_timestep"


class HeliosSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Ordinary flow sampling, which core's own samplers see; its own class shows whether a node replaced it."""


class _RawVelocity:
    """The model as core's ``_apply_model`` sees it in a Helios sampler: velocity at an exact timestep (0..1000).

    Core passes sigma in and x0 out, and (x - x0)/sigma loses precision at small sigma; pyramid timesteps are not
    1000*sigma either.
    """

    def __init__(self, model: HeliosModel, timestep: float):
        self._model, self._timestep = model, timestep
        self.model_sampling = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise

    def timestep(self, sigma: Tensor) -> Tensor:
        return torch.full_like(sigma, self._timestep)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output


class HeliosConfig(comfy.supported_models_base.BASE):
    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": SHIFT, "multiplier": 1000}
    latent_format = comfy.latent_formats.Wan21
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]

    def __init__(self, transformer: TransformerConfig, variant: str):
        super().__init__(transformer.to_dict())
        self.variant = variant
        self.memory_usage_factor = transformer.dim * MEMORY_PER_DIM

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> HeliosModel:
        return HeliosModel(self, device=device)


class HeliosModel(comfy.model_base.BaseModel):
    """BaseModel around :class:`HeliosNetwork`; ``variant`` says which sampler the weights were trained for."""

    def __init__(self, config: HeliosConfig, device: Any = None):
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HeliosNetwork)
        self.model_sampling = HeliosSampling(config)
        self.variant = config.variant
        self.memory_usage_factor_conds = ("history_short", "history_mid", "history_long")
        # Mid and long history are patched 8 and 64 times as coarsely as the noisy latents.
        self.memory_usage_shape_process = {
            "history_mid": lambda shape: [shape[0], shape[1], 1, shape[3] // 2, shape[4] // 2],
            "history_long": lambda shape: [shape[0], shape[1], 1, shape[3] // 2, shape[4] // 2],
        }

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """Core's: x0 at sigma ``t``; in a Helios sampler the velocity, at the timestep that its options hold."""
        options = {**(transformer_options or {})}
        timestep = options.pop(TIMESTEP_KEY, None)
        if timestep is None and VARIANTS[self.variant].scheduler["stages"] > 1:
            wanted = f"Helios {VARIANTS[self.variant].sampler} Sampler"
            warn(f"Helios {self.variant} is trained for {wanted}; a sampler of core runs it at full size alone.")
        model = self if timestep is None else _RawVelocity(self, timestep)
        return comfy.model_base.BaseModel._apply_model(model, x, t, c_concat, c_crossattn, control, options, **conds)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        out = super().extra_conds(**kwargs)
        text = kwargs.get("cross_attn")
        if text is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(text)
        noise, history = kwargs["noise"], kwargs.get(HISTORY_KEY)
        check_noise(noise, history)
        if history is None:
            # Plain text-to-video graphs of core nodes carry no history: their one chunk is chunk 0.
            warn("No history: this is the first chunk of a film. Helios Apply History goes on with one.")
            batch, _, _, h, w = noise.shape
            history = History.empty(w * LATENT_SCALE, h * LATENT_SCALE, batch)
        for name, part in zip(("short", "mid", "long"), history.context(), strict=True):
            out[f"history_{name}"] = comfy.conds.CONDRegular(part)
        return out

    def state_dict_for_saving(self, unet_state_dict: dict[str, Tensor], *parts: Any, **named_parts: Any) -> dict:
        """Adds what a file must say about itself: core's savers write no metadata for models it does not know."""
        saved = super().state_dict_for_saving(unet_state_dict, *parts, **named_parts)
        saved[INFO_TENSOR] = info_tensor(self.variant, self.diffusion_model.config)
        return saved


def check_noise(noise: Tensor, history: History | None) -> None:
    """Refuses noise that is not one chunk, or of another size than its history's: core samples whatever it is given."""
    check_latent_shape(tuple(noise.shape))
    if history is not None:
        check_fits(tuple(noise.shape), history.width, history.height, history.latents.shape[0])


def check_latent_shape(shape: tuple[int, ...]) -> None:
    """Refuses latents that are not one chunk."""
    if len(shape) != 5 or shape[2] != CHUNK_LATENT_FRAMES:
        raise HeliosError(
            f"latent_image has shape {list(shape)}; one Helios chunk is [B,16,9,H/8,W/8], a length of 33."
        )


def check_fits(shape: tuple[int, ...], width: int, height: int, batch: int) -> None:
    """Refuses latents of another size than that of their history."""
    if shape[3:] != (height // LATENT_SCALE, width // LATENT_SCALE) or shape[0] % batch:
        raise HeliosError(
            f"latent_image has shape {list(shape)} but the history is {width}x{height} with a batch of {batch}; give "
            "both the same width, height and batch size."
        )


class HeliosNetwork(HeliosTransformer):
    """The transformer behind core's calling convention, with core's attention and its patches."""

    def __init__(self, operations: Any, **settings: Any):
        super().__init__(operations=with_held_elsewhere(operations), **settings)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, options, **conds)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        transformer_options: dict[str, Any],
        history_short: Tensor,
        history_mid: Tensor,
        history_long: Tensor,
        **_: Any,
    ) -> Tensor:
        prepared = transformer_options.get(PREPARED_KEY) or PreparedInputs()
        conds = tuple(transformer_options.get("uuids", ()))
        text = prepared.text(conds, lambda: self.prepare_text(context))
        history = prepared.history(conds, lambda: self.prepare_history(history_short, history_mid, history_long))
        attention = functools.partial(optimized_attention, transformer_options=transformer_options)
        run_block = functools.partial(self._run_patched_block, transformer_options)
        return super().forward(x, timestep, text, history=history, attention=attention, run_block=run_block)

    def _run_patched_block(
        self,
        transformer_options: dict[str, Any],
        index: int,
        x: Tensor,
        context: Any,
        keys_values: Any,
        noisy_only: bool,
    ) -> Tensor:
        transformer_options["block_index"] = index
        patch = transformer_options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))
        if patch is None:
            return self.run_block(index, x, context, keys_values, noisy_only)

        def original(arguments: dict[str, Any]) -> dict[str, Any]:
            return {"img": self.run_block(index, arguments["img"], context, keys_values, noisy_only)}

        arguments = {
            "img": x,
            "txt": keys_values,
            "vec": context.noisy_modulation,
            "pe": context.rope,
            "transformer_options": transformer_options,
        }
        return patch(arguments, {"original_block": original})["img"]


def load_helios_model(
    path: str | Path,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    variant: str | None = None,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """Loads a released folder or single file as core loads a diffusion model (comfy.sd.load_diffusion_model).

    ``dtype`` None lets core choose for the device; ``attention`` None uses core's; ``variant`` is needed where a
    single file does not say which it is. Weights that need no conversion stay memory-mapped.

    Raises:
        HeliosError: absent, damaged, foreign, or of an unknown or contradicting variant.
    """
    source = open_transformer(path, variant)
    state_dict = read_state_dict(source)
    with torch.device("meta"):
        skeleton = HeliosTransformer(**source.config.to_dict())
    check_state_dict(skeleton, state_dict, source.path)
    state_dict = unpacked_outside_blocks(state_dict, source.path)

    load_device = comfy.model_management.get_torch_device()
    config = HeliosConfig(source.config, source.variant)
    config.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    _choose_dtypes(config, state_dict, dtype, load_device)
    # Mixed-precision layers are made of what they load and take their device from here; all others would be
    # allocated once, empty, only to be replaced by the file's tensors.
    model = config.get_model(state_dict, device=None if config.quant_config else torch.device("meta"))
    model.device = None
    # Looked up at call time: core swaps the class when dynamic VRAM is on.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    offload_device = comfy.model_management.unet_offload_device()
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not patcher.is_dynamic():
        state_dict = _placed(state_dict, config)
    model.load_model_weights(state_dict, "", assign=True)
    if not patcher.is_dynamic() and not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    patcher.cached_patcher_init = (load_helios_model, (path, dtype, attention, variant))
    if attention is not None:
        _use_attention(patcher, attention)
    return patcher


def _choose_dtypes(
    config: HeliosConfig, state_dict: dict[str, Tensor], dtype: torch.dtype | None, load_device: torch.device
) -> None:
    supported = config.supported_inference_dtypes
    quantised = config.quant_config is not None
    stored = comfy.utils.weight_dtype(state_dict)
    storage = dtype or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state_dict),
        supported_dtypes=supported,
        weight_dtype=None if quantised else stored,
    )
    # Core would store the model in a type it can compute in, which on a CPU doubles a bf16 file and copies it into
    # memory. Cast on use, the same numbers are computed from the file's own mapping.
    if dtype is None and not quantised and stored.itemsize < storage.itemsize:
        storage = stored
    compute = comfy.model_management.unet_manual_cast(None if quantised else storage, load_device, supported)
    config.set_inference_dtype(storage, compute, device=load_device)


def _placed(state_dict: dict[str, Tensor], config: HeliosConfig) -> dict[str, Tensor]:
    """Tensors in their run-time types; a quantised file keeps its own, apart from the float32 parts."""
    storage = config.unet_config["dtype"]
    for key in list(state_dict):
        if config.quant_config is None or keeps_float32(key):
            # One at a time, so that a conversion never holds the model twice.
            state_dict[key] = place(key, state_dict[key], storage)
    return state_dict


def _use_attention(patcher: comfy.model_patcher.ModelPatcher, name: str) -> None:
    function = get_attention_function(name)

    def override(_default: Any, *args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs)

    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
