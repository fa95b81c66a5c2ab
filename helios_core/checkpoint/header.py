"""The header of a safetensors file, checked against the file before any tensor is read."""

from __future__ import annotations

import io
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import HeliosError, shortened
from ..networks.settings import LARGEST
from .packed import Form

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# A header has some hundred bytes a tensor; parsed, it takes several times the room of its text.
LARGEST_HEADER = LARGEST
_SIGNS = (
    (b"<", "is a web page, not a safetensors file: its download needs a login or the direct link"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for: run git lfs pull"),
    (b"PK\x03\x04", "is a zip or PyTorch file, not a safetensors file: choose the .safetensors version"),
    (b"GGUF", "is a GGUF file, which is read for transformers alone: choose the .safetensors version"),
)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: ``start`` and ``end`` are byte offsets from the beginning of the file.

    ``shape`` is that of the numbers; where they are packed as ``form``, the file has them as uint8.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    form: Form | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """As the file has it, in elements of ``dtype``."""
        return self.shape if self.form is None else self.form.packed_shape(self.shape)

    @property
    def count(self) -> int:
        """Elements of ``dtype`` in the file."""
        return math.prod(self.stored_shape)


@dataclass(frozen=True)
class Header:
    """Tensors by name, and the file's metadata; ``data_start`` is where the tensors begin in the file."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int
    is_gguf: bool = False


def read_header(path: str | Path) -> Header:
    """Reads and checks a safetensors header; costs one small read whatever the file's size.

    Raises:
        HeliosError: absent, a web page, another format, or truncated.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(path, file, path.stat().st_size)
    except FileNotFoundError:
        raise HeliosError(f"{path} is missing; download it again.") from None
    except OSError as error:
        raise HeliosError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None


def header_of(data: bytes, path: Path) -> Header:
    """:func:`read_header` of a file's whole content, which errors call ``path``."""
    return _read(path, io.BytesIO(data), len(data))


def _read(path: Path, file: BinaryIO, size: int) -> Header:
    start = file.read(64)
    _refuse_other_formats(path, start)
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
    if length > LARGEST_HEADER:
        raise HeliosError(f"{path} is not a safetensors file; download it again.")
    if 8 + length > size:
        raise _incomplete(path, f"it ends within its header, after {size:,} bytes")
    file.seek(8)
    text = file.read(length)
    if len(text) < length:
        raise _incomplete(path, "it ends within its header")
    return _checked(path, _parsed(path, text), 8 + length, size)


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError):
        content = None
    # The library refuses what does not begin with the brace.
    if not isinstance(content, dict) or not text.startswith(b"{"):
        raise HeliosError(f"{path} is not a safetensors file; download it again.")
    return content


def _refuse_other_formats(path: Path, start: bytes) -> None:
    for sign, meaning in _SIGNS:
        if start.lstrip().startswith(sign):
            raise HeliosError(f"{path} {meaning}.")


def _whole(text: str) -> int:
    if math.isinf(float(text)):  # the library reads large ones as float64
        raise ValueError(text)
    return int(text)


def _no_number(text: str) -> None:
    raise ValueError(text)  # sizes are whole; the library reads no infinity and no NaN


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal keys they take, so the format forbids them, and half surrogate pairs."""
    for part in (part for pair in pairs for part in pair if isinstance(part, str)):
        part.encode()
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _checked(path: Path, content: dict[str, Any], base: int, size: int) -> Header:
    """The rules of the safetensors library: tensors follow one another without a hole or an overlap to the end."""
    metadata = content.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeliosError(f"{path} has metadata that is no text; download it again.")
    tensors = {name: _entry(path, name, info, base) for name, info in content.items()}
    end = base
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise HeliosError(f"{path} contradicts itself about where {shortened(name)} lies; download it again.")
        end = entry.end
    if end > size:
        raise _incomplete(path, f"it has {size:,} of {end:,} bytes")
    if end < size:
        raise HeliosError(f"{path} has {size - end:,} bytes behind its last tensor; download it again.")
    return Header(path, tensors, metadata, base)


def _entry(path: Path, name: str, info: Any, base: int) -> TensorEntry:
    if not isinstance(info, dict) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        raise HeliosError(f"{path} does not describe the tensor {shortened(name)}; download it again.")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise HeliosError(
            f"{path} has the tensor {shortened(name)} of the unknown type {shortened(dtype)}; download it again."
        )
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise HeliosError(
            f"{path} has the tensor {shortened(name)} of shape {shortened(shape)} at {shortened(offsets)}, which are "
            "no sizes; download it again."
        )
    entry = TensorEntry(DTYPES[dtype], tuple(shape), base + offsets[0], base + offsets[1])
    # torch counts a tensor's numbers in 63 bits, an empty one's too.
    if entry.end - entry.start != entry.count * entry.dtype.itemsize or math.prod(filter(None, shape)) >= 2**60:
        raise HeliosError(f"{path} contradicts itself about the size of {shortened(name)}; download it again.")
    return entry


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**60 for value in values)


def _incomplete(path: Path, why: str) -> HeliosError:
    return HeliosError(f"{path} is not a complete safetensors file ({why}); download it again.")
