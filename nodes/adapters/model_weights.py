"""A transformer's tensors in the form that core's layers load: our names, memory-mapped."""

from __future__ import annotations

from pathlib import Path

import comfy.memory_management
import comfy.utils
import torch
from torch import Tensor

from ...helios_core.checkpoint.gguf import any_header
from ...helios_core.checkpoint.load import keeps_float32
from ...helios_core.checkpoint.mapped import map_file
from ...helios_core.checkpoint.packed import unpack
from ...helios_core.checkpoint.quantised import FORMAT_MARKER, layer_formats, packed_form
from ...helios_core.checkpoint.source import TransformerSource, transformer_tensors


def read_state_dict(source: TransformerSource) -> dict[str, Tensor]:
    """The tensors under our names, memory-mapped."""
    tensors: dict[str, Tensor] = {}
    for file in source.files:
        part, metadata = _read_file(file)
        part, _ = comfy.utils.convert_old_quants(part, "", metadata=metadata)
        tensors.update(part)
    tensors = transformer_tensors(tensors)
    # Again for the old fp8 files whose marker had a prefix.
    return comfy.utils.convert_old_quants(tensors, "", metadata={})[0]


def unpacked_outside_blocks(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """GGUF files of some tools pack what this model keeps in float32; those few matrices are unpacked at once."""
    markers = {key: value for key, value in tensors.items() if key.endswith(FORMAT_MARKER)}
    for key, form in layer_formats(markers, {}, path).items():
        weight = f"{key}.weight"
        if packed_form(form) and weight in tensors and (not key.startswith("blocks.") or keeps_float32(weight)):
            tensors[weight] = unpack(packed_form(form), tensors[weight], torch.bfloat16)
            del tensors[key + FORMAT_MARKER]
    return tensors


def _read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By core where it needs to know a tensor's place in its file (dynamic VRAM), or was told not to map files.

    Elsewhere core would map the file in a way that Linux refuses where the file is larger than memory.
    """
    by_core = comfy.memory_management.aimdo_enabled or comfy.utils.DISABLE_MMAP
    if by_core and not any_header(file).is_gguf:
        return comfy.utils.load_torch_file(str(file), return_metadata=True)
    return map_file(file)
