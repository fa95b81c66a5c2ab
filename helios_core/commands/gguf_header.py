"""The first bytes of a GGUF file: text about the model, then each tensor's name, shape, type and place."""

from __future__ import annotations

import math
import struct

from ..checkpoint.gguf import ALIGNMENT, ARRAY, INT32, MAGIC, ORIGINAL_SHAPE, PLAIN_TYPES, STRING, UINT32
from .conversion_plan import Plan, Planned

VERSION, MOST_DIMENSIONS = 3, 4
_NUMBERS = {dtype: number for number, dtype in PLAIN_TYPES.items()}


def gguf_header(plan: Plan) -> tuple[bytes, dict[str, int]]:
    """The bytes before the tensors, and every tensor's offset in the file.

    GGUF has at most four dimensions; a tensor of more lies as a matrix beside its shape, as ComfyUI-GGUF has it.
    """
    pairs = [_pair(key, STRING, _text(value)) for key, value in plan.metadata.items()]
    pairs.append(_pair("general.quantization_version", UINT32, struct.pack("<I", 2)))
    infos, relative, position = [], {}, 0
    for item in plan.tensors:
        shape = item.shape
        if len(shape) > MOST_DIMENSIONS:
            content = struct.pack(f"<IQ{len(shape)}i", INT32, len(shape), *shape)
            pairs.append(_pair(ORIGINAL_SHAPE + item.name, ARRAY, content))
            shape = (shape[0], math.prod(shape[1:]))
        relative[item.name] = position
        infos.append(_info(item, shape, position))
        position += -(-item.nbytes // ALIGNMENT) * ALIGNMENT
    start = MAGIC + struct.pack("<IQQ", VERSION, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    start += bytes(-len(start) % ALIGNMENT)
    return start, {name: len(start) + offset for name, offset in relative.items()}


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def _info(item: Planned, shape: tuple[int, ...], position: int) -> bytes:
    number = item.form.number if item.form else _NUMBERS[item.dtype]
    sides = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return _text(item.name) + sides + struct.pack("<IQ", number, position)
