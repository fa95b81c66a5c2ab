"""Loader nodes: a released folder or a single file becomes MODEL, CLIP or VAE."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import REGISTERED_ATTENTION_FUNCTIONS
from comfy_api.latest import io

from ..helios_core.errors import HeliosError
from ..helios_core.variants import VARIANTS
from .adapters.graph_checks import check_node
from .adapters.model import load_helios_model
from .adapters.model_files import check_installed, choices, default_choice, resolve
from .adapters.text_encoder import load_text_encoder
from .adapters.vae import load_vae
from .adapters.whole_models import DEFAULT_CHOICE, check_whole, model_of
from .adapters.whole_models import choices as whole_choices

WEIGHT_DTYPES = {
    "default": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
AUTO = "auto"
TRANSFORMERS, TEXT_ENCODERS, VAES = "diffusion_models", "text_encoders", "vae"


def _model_input(name: str, what: str, kind: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=choices(kind),
        default=default_choice(kind),
        tooltip=f"The released Helios folder under models/diffusers whose {what} is loaded, or a single file under "
        f"models/{kind}. The helios-tiny choices have random weights and need no download.",
    )


def _weight_dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "weight_dtype",
        options=list(WEIGHT_DTYPES),
        default="default",
        optional=True,
        advanced=True,
        tooltip="Type of the weights in memory. default lets ComfyUI choose for the device (bfloat16 on "
        "recent GPUs); fp8_e4m3fn halves the memory at some loss of quality.",
    )


def _attention_input() -> io.Combo.Input:
    return io.Combo.Input(
        "attention",
        options=[AUTO, *sorted(REGISTERED_ATTENTION_FUNCTIONS)],
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip="Attention implementation. auto is the one ComfyUI was started with.",
    )


class HeliosLoadModel(io.ComfyNode):
    """Loads a whole model, transformer, text encoder and VAE, from one folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLoadModel",
            display_name="Helios Load Model",
            category="Helios/loaders",
            description="Loads a whole Helios model from one folder: transformer, text encoder and VAE. The node says "
            "which folder that is and what is missing, and downloads it at the press of a button.",
            search_aliases=["load helios", "helios checkpoint", "install helios", "helios weights"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=whole_choices(),
                    default=DEFAULT_CHOICE,
                    tooltip="distilled, mid and base take the best model of that variant that is there: the released "
                    "folder under models/diffusers, another folder of that variant, or a small model that comes with "
                    "the nodes. Or one folder by its name.",
                ),
                _weight_dtype_input(),
                _attention_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="A native MODEL: LoRA, compile and sampling nodes accept it."),
                io.Clip.Output(tooltip="The text encoder. Connect it to CLIP Text Encode."),
                io.Vae.Output(tooltip="Connect it to Helios Decode, Render Video and the histories."),
                io.Int.Output(display_name="width", tooltip="Width the model is made for; 640 for released models."),
                io.Int.Output(display_name="height", tooltip="Height the model is made for; 384 for released models."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return check_whole(model) or check_node()

    @classmethod
    def fingerprint_inputs(cls, model: str, weight_dtype: str = "default", attention: str = AUTO) -> str:
        # What "distilled" stands for changes once a model is downloaded.
        return model_of(model).name

    @classmethod
    def execute(cls, model: str, weight_dtype: str = "default", attention: str = AUTO) -> io.NodeOutput:
        problem = check_whole(model)
        if problem is not None:
            raise HeliosError(problem)
        chosen = model_of(model)
        path = resolve(chosen.name, TRANSFORMERS)
        chosen_attention = None if attention == AUTO else attention
        return io.NodeOutput(
            load_helios_model(path, WEIGHT_DTYPES[weight_dtype], chosen_attention),
            load_text_encoder(path),
            load_vae(path),
            *chosen.size,
        )


class HeliosModelLoader(io.ComfyNode):
    """Loads the Helios transformer; the folder or file says which variant it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosModelLoader",
            display_name="Helios Model Loader",
            category="Helios/loaders",
            description="Loads the Helios transformer from a released folder or a single file: bf16, fp16, fp32, "
            "scaled fp8, or GGUF (Q8_0, Q5_1, Q5_0, Q4_1, Q4_0). It knows whether it is Base, Mid or Distilled, and "
            "only that variant's sampler accepts it.",
            search_aliases=["load helios", "helios checkpoint", "helios unet", "helios diffusion model"],
            inputs=[
                _model_input("model", "transformer", TRANSFORMERS),
                _weight_dtype_input(),
                _attention_input(),
                io.Combo.Input(
                    "variant",
                    options=[AUTO, *VARIANTS],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Which Helios a single file is, where the file does not say so itself. auto reads it from "
                    "the folder or the file.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A native MODEL: LoRA, compile and sampling nodes accept it.")],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return check_installed(model, TRANSFORMERS) or check_node()

    @classmethod
    def execute(
        cls, model: str, weight_dtype: str = "default", attention: str = AUTO, variant: str = AUTO
    ) -> io.NodeOutput:
        path = resolve(model, TRANSFORMERS)
        chosen_attention, chosen_variant = (None if chosen == AUTO else chosen for chosen in (attention, variant))
        return io.NodeOutput(load_helios_model(path, WEIGHT_DTYPES[weight_dtype], chosen_attention, chosen_variant))


class HeliosTextEncoderLoader(io.ComfyNode):
    """Loads the UMT5 text encoder of a released folder or a single file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosTextEncoderLoader",
            display_name="Helios Text Encoder Loader",
            category="Helios/loaders",
            description="Loads the UMT5-XXL text encoder of a released folder or a single file. Core's Load CLIP with "
            "type wan is equally good; this one reads parentheses as plain text, as the reference does.",
            search_aliases=["helios clip", "helios umt5", "helios t5"],
            inputs=[_model_input("text_encoder", "text encoder", TEXT_ENCODERS)],
            outputs=[io.Clip.Output(tooltip="Connect it to CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: str | None = None) -> bool | str:
        return check_installed(text_encoder, TEXT_ENCODERS) or True

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        return io.NodeOutput(load_text_encoder(resolve(text_encoder, TEXT_ENCODERS)))


class HeliosVAELoader(io.ComfyNode):
    """Loads the Wan 2.1 VAE of a released folder or a single file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosVAELoader",
            display_name="Helios VAE Loader",
            category="Helios/loaders",
            description="Loads the Wan 2.1 VAE of a released folder or a single file. Core's Load VAE with the Wan 2.1 "
            "VAE is equally good.",
            search_aliases=["helios vae", "wan vae diffusers"],
            inputs=[_model_input("vae", "VAE", VAES)],
            outputs=[io.Vae.Output(tooltip="Connect it to Helios Decode.")],
        )

    @classmethod
    def validate_inputs(cls, vae: str | None = None) -> bool | str:
        return check_installed(vae, VAES) or True

    @classmethod
    def execute(cls, vae: str) -> io.NodeOutput:
        return io.NodeOutput(load_vae(resolve(vae, VAES)))
