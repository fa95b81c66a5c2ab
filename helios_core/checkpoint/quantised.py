"""Core ComfyUI's format for quantised weights: which layers are, how to read one, how to write one.

A quantised layer keeps ``X.weight`` in a narrow type beside ``X.weight_scale``; the metadata key
``_quantization_metadata`` (or a ``X.comfy_quant`` tensor) names its format. Older files have
``X.scale_weight`` and one ``scaled_fp8`` tensor instead. Source: ComfyUI's QUANTIZATION.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..errors import HeliosError, shortened
from .names import native_name

T = TypeVar("T")
METADATA_KEY = "_quantization_metadata"
FP8_FORMAT = "float8_e4m3fn"
# Formats that are one narrow number times one scale, which is all that the headless library multiplies out.
SCALED_FORMATS = ("float8_e4m3fn", "float8_e5m2")
SCALE = ".weight_scale"
MARKER = "scaled_fp8"
_COMPANIONS = (".comfy_quant", SCALE, ".weight_scale_2", ".input_scale", ".pre_quant_scale",
               ".scale_weight", ".scale_input")  # fmt: skip


def without_companions(state: Mapping[str, T]) -> dict[str, T]:
    """The tensors that a model has parameters for: no scales, no format markers."""
    return {
        key: value
        for key, value in state.items()
        if key != MARKER and not (key.endswith(_COMPANIONS) and f"{key.rsplit('.', 1)[0]}.weight" in state)
    }


def layer_formats(state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, str]:
    """Format by layer, under our names; ``state`` has our names too."""
    try:
        layers = json.loads(metadata[METADATA_KEY])["layers"] if METADATA_KEY in metadata else {}
        formats = {native_name(f"{layer}.weight").removesuffix(".weight"): conf["format"]
                   for layer, conf in layers.items()}  # fmt: skip
        for key, value in state.items():
            if key.endswith(".comfy_quant"):
                formats[key.removesuffix(".comfy_quant")] = json.loads(value.numpy().tobytes())["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HeliosError(f"{path} has damaged quantization metadata; download it again.") from None
    return formats | {key.removesuffix(".scale_weight"): FP8_FORMAT for key in state if key.endswith(".scale_weight")}


def scales(state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Scale of every quantised weight, by the weight's name.

    Raises:
        HeliosError: a format that only ComfyUI multiplies out, or a scale that is missing.
    """
    found: dict[str, Tensor] = {}
    for layer, form in layer_formats(state, metadata, path).items():
        if not isinstance(form, str) or form not in SCALED_FORMATS:
            raise HeliosError(
                f"{path} is quantised as {shortened(form)}, which runs in ComfyUI only; use a bf16 or fp8 file."
            )
        scale = state.get(f"{layer}{SCALE}", state.get(f"{layer}.scale_weight"))
        if scale is None:
            raise HeliosError(f"{path} lacks {layer}{SCALE}; download it again.")
        found[f"{layer}.weight"] = scale
    return found


def quantisation_metadata(layers: Iterable[str]) -> str:
    """The metadata value that tells core which layers are scaled fp8."""
    content: dict[str, Any] = {"format_version": "1.0", "layers": {layer: {"format": FP8_FORMAT} for layer in layers}}
    return json.dumps(content)
