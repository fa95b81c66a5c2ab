"""The header of a safetensors file, checked against the file before any tensor is read."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import HeliosError

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
# The limit of the safetensors library itself.
LARGEST_HEADER = 100_000_000
_SIGNS = (
    (b"<", "is a web page, not a safetensors file: its download needs a login or the direct link"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for: run git lfs pull"),
    (b"PK\x03\x04", "is a zip or PyTorch file, not a safetensors file: choose the .safetensors version"),
    (b"GGUF", "is a GGUF file, not a safetensors file: choose the .safetensors version"),
)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: ``start`` and ``end`` are byte offsets from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Tensors by name, and the file's metadata."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """Reads and checks a safetensors header; costs one small read whatever the file's size.

    Raises:
        HeliosError: absent, a web page, another format, or truncated.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            _refuse_other_formats(path, start)
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
            if length > LARGEST_HEADER:
                raise HeliosError(f"{path} is not a safetensors file; download it again.")
            if 8 + length > size:
                raise _incomplete(path, f"it ends within its header, after {size:,} bytes")
            file.seek(8)
            content = json.loads(file.read(length))
    except FileNotFoundError:
        raise HeliosError(f"{path} is missing; download it again.") from None
    except OSError as error:
        raise HeliosError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None
    except ValueError as error:
        if isinstance(error, HeliosError):
            raise
        raise HeliosError(f"{path} is not a safetensors file; download it again.") from None
    return _checked(path, content, 8 + length, size)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    for sign, meaning in _SIGNS:
        if start.lstrip().startswith(sign):
            raise HeliosError(f"{path} {meaning}.")


def _checked(path: Path, content: Any, base: int, size: int) -> Header:
    metadata = content.pop("__metadata__", None) or {} if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise HeliosError(f"{path} is not a safetensors file; download it again.")
    tensors: dict[str, TensorEntry] = {}
    try:
        for name, info in content.items():
            first, last = info["data_offsets"]
            tensors[name] = TensorEntry(DTYPES[info["dtype"]], tuple(info["shape"]), base + first, base + last)
    except (KeyError, TypeError, ValueError) as error:
        raise HeliosError(f"{path} has a tensor of an unknown kind ({error}); download it again.") from None
    for name, entry in tensors.items():
        if entry.end - entry.start != entry.count * entry.dtype.itemsize:
            raise HeliosError(f"{path} contradicts itself about the size of {name}; download it again.")
    needed = max((entry.end for entry in tensors.values()), default=base)
    if needed > size:
        raise _incomplete(path, f"it has {size:,} of {needed:,} bytes")
    return Header(path, tensors, {str(key): str(value) for key, value in metadata.items()})


def _incomplete(path: Path, why: str) -> HeliosError:
    return HeliosError(f"{path} is not a complete safetensors file ({why}); download it again.")
