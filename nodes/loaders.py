"""Loader nodes: a released folder becomes MODEL, CLIP and VAE."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import REGISTERED_ATTENTION_FUNCTIONS
from comfy_api.latest import io

from .files import check_installed, default_choice, folder_choices, resolve_folder
from .model import load_helios_model
from .text_encoder import load_text_encoder
from .vae import load_vae

WEIGHT_DTYPES = {
    "default": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
AUTO = "auto"


def _folder_input(name: str, what: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=folder_choices(),
        default=default_choice(),
        tooltip=f"The released Helios folder under models/diffusers whose {what} is loaded. The helios-tiny choices "
        "have random weights and need no download.",
    )


class HeliosModelLoader(io.ComfyNode):
    """Loads the Helios transformer; the folder says which variant it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosModelLoader",
            display_name="Helios Model Loader",
            category="Helios/loaders",
            description="Loads the Helios transformer. The folder says whether it is Base, Mid or Distilled, and "
            "only that variant's sampler accepts it.",
            search_aliases=["load helios", "helios checkpoint", "helios unet", "helios diffusion model"],
            inputs=[
                _folder_input("model", "transformer"),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="Type of the weights in memory. default lets ComfyUI choose for the device (bfloat16 on "
                    "recent GPUs); fp8_e4m3fn halves the memory at some loss of quality.",
                ),
                io.Combo.Input(
                    "attention",
                    options=[AUTO, *sorted(REGISTERED_ATTENTION_FUNCTIONS)],
                    default=AUTO,
                    advanced=True,
                    tooltip="Attention implementation. auto is the one ComfyUI was started with.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A native MODEL: LoRA, compile and sampling nodes accept it.")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        return check_installed(model) or True

    @classmethod
    def execute(cls, model: str, weight_dtype: str, attention: str) -> io.NodeOutput:
        folder = resolve_folder(model)
        chosen = None if attention == AUTO else attention
        return io.NodeOutput(load_helios_model(folder, WEIGHT_DTYPES[weight_dtype], chosen))


class HeliosTextEncoderLoader(io.ComfyNode):
    """Loads the UMT5 text encoder of a released folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosTextEncoderLoader",
            display_name="Helios Text Encoder Loader",
            category="Helios/loaders",
            description="Loads the UMT5-XXL text encoder of a released folder. Core's Load CLIP with type wan is "
            "equally good; this one reads parentheses as plain text, as the reference does.",
            search_aliases=["helios clip", "helios umt5", "helios t5"],
            inputs=[_folder_input("text_encoder", "text encoder")],
            outputs=[io.Clip.Output(tooltip="Connect it to CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: str) -> bool | str:
        return check_installed(text_encoder) or True

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        return io.NodeOutput(load_text_encoder(resolve_folder(text_encoder)))


class HeliosVAELoader(io.ComfyNode):
    """Loads the Wan 2.1 VAE of a released folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosVAELoader",
            display_name="Helios VAE Loader",
            category="Helios/loaders",
            description="Loads the Wan 2.1 VAE of a released folder. Core's Load VAE with the Wan 2.1 VAE is "
            "equally good.",
            search_aliases=["helios vae", "wan vae diffusers"],
            inputs=[_folder_input("vae", "VAE")],
            outputs=[io.Vae.Output(tooltip="Connect it to Helios Decode.")],
        )

    @classmethod
    def validate_inputs(cls, vae: str) -> bool | str:
        return check_installed(vae) or True

    @classmethod
    def execute(cls, vae: str) -> io.NodeOutput:
        return io.NodeOutput(load_vae(resolve_folder(vae)))
