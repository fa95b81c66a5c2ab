"""Writes a trained model as a released folder, which the pipeline, diffusers and the nodes load unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from helios_core.checkpoint import to_diffusers
from helios_core.networks.transformer import HeliosTransformer
from helios_core.variants import VARIANTS

PARTS = ("vae", "text_encoder", "tokenizer")


def write_release(folder: Path, parts: Path, variant: str, model: HeliosTransformer) -> Path:
    """Writes ``folder`` anew: the frozen ``parts``, and the transformer in float16."""
    for part in PARTS:
        shutil.copytree(parts / part, folder / part, dirs_exist_ok=True)
    _dump(_model_index(variant), folder / "model_index.json")
    _dump(dict(VARIANTS[variant].scheduler), folder / "scheduler" / "scheduler_config.json")
    config = {"_class_name": "HeliosTransformer3DModel", **model.config.to_dict()}
    _dump(config, folder / "transformer" / "config.json")
    tensors: dict[str, Tensor] = to_diffusers(model.state_dict())
    halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


def _model_index(variant: str) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "HeliosPipeline" if variant == "base" else "HeliosPyramidPipeline",
        "_diffusers_version": "0.42.1",
    }
    if variant != "base":
        index |= {"is_cfg_zero_star": variant == "mid", "is_distilled": variant == "distilled"}
    return index | {
        "scheduler": ["diffusers", dict(VARIANTS[variant].scheduler)["_class_name"]],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _dump(value: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
