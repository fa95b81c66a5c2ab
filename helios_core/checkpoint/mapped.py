"""Tensors that are views of a file mapping: loaded when they are used, and not charged as memory.

safetensors' own reader maps files so that Linux refuses one that is larger than memory and swap together; a
bf16 Helios is 28.7 GB. As there, writing into a tensor changes a private copy of the page, never the file.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HeliosError
from .gguf import any_header
from .header import TensorEntry
from .quantised import marker

# Not in Python's mmap module before 3.13: reserve no memory for pages that may never be written.
MAP_NORESERVE = 0x4000


def map_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors or GGUF file, and its metadata; packed ones as bytes, beside what says so.

    Raises:
        HeliosError: absent, truncated, or another format.
    """
    header = any_header(path)
    try:
        mapping = _map(header.path)
    except OSError as error:
        raise HeliosError(f"{path} cannot be mapped ({error.strerror}); copy it to a local disk.") from None
    tensors = {name: _view(entry, mapping) for name, entry in header.tensors.items()}
    packed = {name: entry.form for name, entry in header.tensors.items() if entry.form is not None}
    return tensors | dict(marker(name, form.name) for name, form in packed.items()), header.metadata


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        if sys.platform == "linux":
            flags = mmap.MAP_PRIVATE | MAP_NORESERVE
            return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _view(entry: TensorEntry, mapping: mmap.mmap) -> Tensor:
    if not entry.count:
        return torch.empty(entry.stored_shape, dtype=entry.dtype)
    if entry.start % entry.dtype.itemsize:
        # Some writers do not align; kernels may require it.
        flat = torch.frombuffer(bytearray(mapping[entry.start : entry.end]), dtype=entry.dtype)
    else:
        flat = torch.frombuffer(mapping, dtype=entry.dtype, count=entry.count, offset=entry.start)
    return flat.reshape(entry.stored_shape)
