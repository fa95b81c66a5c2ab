"""Core ComfyUI's format for quantised weights: which layers are, how to read one, how to write one.

A quantised layer keeps ``X.weight`` in a narrow type beside ``X.weight_scale``; the metadata key
``_quantization_metadata`` (or a ``X.comfy_quant`` tensor) names its format. Older files have
``X.scale_weight`` and one ``scaled_fp8`` tensor instead. Source: ComfyUI's QUANTIZATION.md. Packed weights of a GGUF
file come in the same way, ``X.weight`` as bytes and a ``X.comfy_quant`` that names the form; core knows none of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import HeliosError, shortened
from .names import native_name
from .packed import BLOCK, FORMS, Form, unpack

T = TypeVar("T")
METADATA_KEY = "_quantization_metadata"
FP8_FORMAT = "float8_e4m3fn"
# Formats that are one narrow number times one scale, which is all that the headless library multiplies out.
SCALED_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_FLOATING = (None, *SCALED_FORMATS)
SCALE = ".weight_scale"
MARKER, FORMAT_MARKER = "scaled_fp8", ".comfy_quant"
_COMPANIONS = (FORMAT_MARKER, SCALE, ".weight_scale_2", ".input_scale", ".pre_quant_scale",
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
            if key.endswith(FORMAT_MARKER):
                formats[key.removesuffix(FORMAT_MARKER)] = json.loads(value.numpy().tobytes())["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HeliosError(f"{path} has damaged quantization metadata; download it again.") from None
    return formats | {key.removesuffix(".scale_weight"): FP8_FORMAT for key in state if key.endswith(".scale_weight")}


def marker(name: str, form: str) -> tuple[str, Tensor]:
    """The tensor, and its name, that tells how the weight ``name`` is packed."""
    content = bytearray(json.dumps({"format": form}).encode())
    return name.removesuffix(".weight") + FORMAT_MARKER, torch.frombuffer(content, dtype=torch.uint8)


@dataclass(frozen=True)
class Scaled:
    """Narrow numbers times one scale, or one for each row."""

    scale: Tensor | float

    def __call__(self, stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The file's numbers -> those that they stand for."""
        scale = self.scale.to(stored.device) if isinstance(self.scale, Tensor) else self.scale
        return stored.to(torch.float32).mul_(scale).to(dtype)

    def stored(self, numbers: int) -> int:
        """How many elements of the file hold at most so many numbers."""
        return numbers

    def numbers(self, stored: int) -> int:
        """How many numbers so many elements of the file hold."""
        return stored


@dataclass(frozen=True)
class Packed:
    """Numbers in blocks, as bytes; the same calls as :class:`Scaled`."""

    form: Form

    def __call__(self, stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return unpack(self.form, stored, dtype)

    def stored(self, numbers: int) -> int:
        return numbers // BLOCK * self.form.nbytes

    def numbers(self, stored: int) -> int:
        return stored // self.form.nbytes * BLOCK


Decoder = Scaled | Packed


def decoders(state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, Decoder]:
    """What turns every quantised weight into numbers, by the weight's name.

    Raises:
        HeliosError: a format that only ComfyUI multiplies out, or a scale that is missing.
    """
    found: dict[str, Decoder] = {}
    for layer, form in layer_formats(state, metadata, path).items():
        if not isinstance(form, str) or form not in (*SCALED_FORMATS, *FORMS):
            raise HeliosError(
                f"{path} is quantised as {shortened(form)}, which runs in ComfyUI only; use a bf16, fp8 or GGUF file."
            )
        if form in FORMS:
            weight = state.get(f"{layer}.weight")
            if weight is None or weight.dtype != torch.uint8:
                raise HeliosError(f"{path} has no bytes of {layer}, which it calls {form}; download it again.")
            found[f"{layer}.weight"] = Packed(FORMS[form])
            continue
        scale = state.get(f"{layer}{SCALE}", state.get(f"{layer}.scale_weight"))
        if scale is None:
            raise HeliosError(f"{path} lacks {layer}{SCALE}; download it again.")
        found[f"{layer}.weight"] = Scaled(float(scale) if scale.numel() == 1 else scale)
    return found


def packed_form(name: Any) -> Form | None:
    """The form that a format is, where it is one of GGUF's."""
    return FORMS.get(name) if isinstance(name, str) else None


def shape_of(key: str, value: Any, forms: Mapping[str, str]) -> tuple[int, ...] | None:
    """The shape of a weight's numbers; None where its bytes do not tell, as those of core's own 4-bit formats.

    ``value`` is a tensor or a header's entry; ``forms`` are the formats by layer.
    """
    shape, name = tuple(value.shape), forms.get(key.removesuffix(".weight"))
    if value.dtype.is_floating_point or name in _FLOATING or getattr(value, "form", None) is not None:
        return shape
    form = packed_form(name)
    if form is None:
        return None
    return form.shape(shape) if len(shape) == 2 and shape[1] % form.nbytes == 0 else ()


def holds_numbers(key: str, value: Any, forms: Mapping[str, str]) -> bool:
    """Whether a weight is floating-point, or whole numbers that its format turns into such; arguments as above."""
    packed = getattr(value, "form", None) is not None or forms.get(key.removesuffix(".weight")) not in _FLOATING
    return packed or value.dtype.is_floating_point


def quantisation_metadata(layers: Iterable[str]) -> str:
    """The metadata value that tells core which layers are scaled fp8."""
    content: dict[str, Any] = {"format_version": "1.0", "layers": {layer: {"format": FP8_FORMAT} for layer in layers}}
    return json.dumps(content)
