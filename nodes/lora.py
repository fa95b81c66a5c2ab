"""LoRA files of every training tool on a Helios MODEL, through core's own weight patches."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.lora
import comfy.model_patcher
import folder_paths
import torch
from comfy_api.latest import io

from ..helios_core.checkpoint.lora import read_lora
from ..helios_core.errors import HeliosError, shortened
from ..helios_core.networks.transformer import HeliosTransformer
from .adapters.model import HeliosModel
from .adapters.sockets import Least

LORAS = "loras"

log = logging.getLogger(__name__)


class HeliosLoraLoader(io.ComfyNode):
    """Applies a LoRA or the training code's partial weights, whatever their naming."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLoraLoader",
            display_name="Helios LoRA Loader",
            category="Helios/loaders",
            description="Applies a LoRA, LoHa or LoKr to the Helios transformer: Wan, diffusers, musubi and kohya "
            "names, and the partial weights of Helios's own training code. Core's Load LoRA takes Wan names only.",
            search_aliases=["helios lora", "wan lora", "transformer_partial"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of a Helios Model Loader."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list(LORAS),
                    tooltip="A file under models/loras, best a safetensors; of a .pth only plain weights are read.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=Least(-100.0),
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly the file changes the model: 0 is no change, 1 what it was trained for. Whole "
                    "weights, as in transformer_partial, are mixed in this proportion.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL with the LoRA.")],
        )

    @classmethod
    def execute(cls, model: comfy.model_patcher.ModelPatcher, lora_name: str, strength: float) -> io.NodeOutput:
        if not isinstance(model.model, HeliosModel):
            raise HeliosError("model is not a Helios model; connect a Helios Model Loader.")
        if lora_name not in folder_paths.get_filename_list(LORAS):
            raise HeliosError(
                f"lora_name={shortened(lora_name)} is not a file under models/loras; choose one from the list."
            )
        if strength == 0:
            return io.NodeOutput(model)
        path = folder_paths.get_full_path_or_raise(LORAS, lora_name)
        return io.NodeOutput(apply_lora(model, path, strength))


def apply_lora(
    model: comfy.model_patcher.ModelPatcher, path: str | Path, strength: float
) -> comfy.model_patcher.ModelPatcher:
    """A clone of ``model`` with the file's changes.

    Raises:
        HeliosError: the file is absent, damaged, or fits nothing in the model.
    """
    with torch.device("meta"):
        skeleton = HeliosTransformer(**model.model.diffusion_model.config.to_dict())
    lora = read_lora(path, {key: tuple(value.shape) for key, value in skeleton.state_dict().items()})
    for warning in lora.warnings():
        log.warning("%s: %s", Path(path).name, warning)
    patched = model.clone()
    for name, adapters in lora.adapters.items():
        for adapter in adapters:
            named = {f"{name}.{role}": tensor for role, tensor in adapter.items()}
            patched.add_patches(comfy.lora.load_lora(named, {name: _key(name)}, log_missing=False), strength)
    patched.add_patches({_key(name): ("diff", (value,)) for name, value in lora.differences.items()}, strength)
    # (1 - strength) * old + strength * new: core scales the old weight by its second factor first.
    whole = {_key(name): ("diff", (value,)) for name, value in lora.replacements.items()}
    patched.add_patches(whole, strength, 1.0 - strength)
    return patched


def _key(name: str) -> str:
    return f"diffusion_model.{name}"
