"""GGUF files, with any tool's names: the header, checked against the file before any tensor is read.

Our own reader, because the gguf package's follows the counts of a damaged file for ever. Source: ggml's gguf.md, and
ComfyUI-GGUF for ``comfy.gguf.orig_shape.X``, the shape of a tensor that was stored with fewer dimensions.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import HeliosError, reason, shortened
from .header import LARGEST_HEADER, Header, TensorEntry, read_header
from .packed import BLOCK, FORMS

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
STRING, ARRAY, INT32, UINT32 = 8, 9, 5, 4
VALUE_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, INT32: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
PLAIN_TYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_PACKED_TYPES = {form.number: form for form in FORMS.values()}
_OTHER_TYPES = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS"}
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_MOST_DIMENSIONS = 8


def any_header(path: str | Path) -> Header:
    """The header of a safetensors or GGUF file, whatever its name ends with.

    Raises:
        HeliosError: absent, another format, damaged, or packed in a way that is not read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return _Reader(path, file, path.stat().st_size).header()
    except OSError as error:
        if path.is_file():
            raise HeliosError(f"{path} cannot be read ({reason(error)}); check its permissions.") from None
    return read_header(path)


class _Reader:
    """Reads on from the magic; every count is held against the bytes that are left."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self._file, self._size = path, file, size
        self._position = len(MAGIC)

    def header(self) -> Header:
        version = self._number("<I")
        if version not in VERSIONS:
            raise HeliosError(f"{self.path} is of GGUF version {version}; versions 2 and 3 are read, convert it.")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        metadata: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        alignment = ALIGNMENT
        for _ in range(pairs):
            key, kind = self._text(), self._number("<I")
            value = self._value(kind, key)
            if key == "general.alignment" and kind == UINT32:
                alignment = value
            elif key.startswith(ORIGINAL_SHAPE) and isinstance(value, tuple):
                shapes[key.removeprefix(ORIGINAL_SHAPE)] = value
            elif isinstance(value, str):
                metadata[key] = value
        if not 0 < alignment <= 1 << 20:
            raise self._damaged(f"an alignment of {alignment}")
        found = [self._info() for _ in range(tensors)]
        start = -(-self._position // alignment) * alignment
        entries: dict[str, TensorEntry] = {}
        for name, shape, kind, offset in found:
            if name in entries:
                raise self._damaged(f"{shortened(name)} twice")
            entries[name] = self._entry(name, shape, shapes.get(name), kind, start + offset)
        self._check_places(entries)
        return Header(self.path, entries, metadata, start, is_gguf=True)

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape as torch orders it, type, offset."""
        name, count = self._text(), self._number("<I")
        if count > _MOST_DIMENSIONS:
            raise self._damaged(f"{shortened(name)} with {count} dimensions")
        shape = tuple(self._number("<Q") for _ in range(count))[::-1]
        return name, shape, self._number("<I"), self._number("<Q")

    def _entry(
        self, name: str, shape: tuple[int, ...], original: tuple[int, ...] | None, kind: int, start: int
    ) -> TensorEntry:
        if math.prod(max(1, side) for side in shape) >= 2**60 or start >= 2**62:
            raise self._damaged(f"{shortened(name)} of shape {list(shape)}")
        count = math.prod(shape)
        if original is not None and (min(original, default=1) < 0 or math.prod(original) != count):
            raise self._damaged(f"{shortened(name)} of {list(shape)} for {shortened(original)}")
        if kind in PLAIN_TYPES:
            dtype = PLAIN_TYPES[kind]
            return TensorEntry(dtype, original or shape, start, start + count * dtype.itemsize)
        form = _PACKED_TYPES.get(kind)
        if form is None:
            known = ", ".join(form.upper() for form in FORMS)
            raise HeliosError(
                f"{self.path} has {shortened(name)} as {_OTHER_TYPES.get(kind, f'type {kind}')}; {known} and plain "
                "numbers are read, choose such a file."
            )
        if original is not None or len(shape) != 2 or shape[1] % BLOCK or not name.endswith(".weight"):
            raise self._damaged(f"{shortened(name)} of {list(shape)} packed as {form.name}")
        end = start + math.prod(form.packed_shape(shape))
        return TensorEntry(torch.uint8, shape, start, end, form)

    def _check_places(self, entries: dict[str, TensorEntry]) -> None:
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            if entry.start < end:
                raise self._damaged(f"{shortened(name)} within another tensor")
            end = entry.end
        if end > self._size:
            raise HeliosError(
                f"{self.path} is not a complete GGUF file (it has {self._size:,} of {end:,} bytes); download it again."
            )

    def _value(self, kind: int, key: str) -> Any:
        """A string; a number; the numbers of an int32 array; None for what nobody here asks for."""
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            number = self._take(self._size_of(kind, key))
            return int.from_bytes(number, "little") if kind == UINT32 else None
        element, count = self._number("<I"), self._number("<Q")
        if element == STRING:
            for _ in range(count):
                self._take(self._number("<Q"))
            return None
        content = self._take(count * self._size_of(element, key))
        return struct.unpack(f"<{count}i", content) if element == INT32 and count <= _MOST_DIMENSIONS else None

    def _size_of(self, kind: int, key: str) -> int:
        if kind not in VALUE_SIZES:
            raise self._damaged(f"{shortened(key)} of the unknown type {kind}")
        return VALUE_SIZES[kind]

    def _text(self) -> str:
        try:
            return self._take(self._number("<Q")).decode()
        except UnicodeDecodeError:
            raise self._damaged("a name that is no text") from None

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, count: int) -> bytes:
        if self._position + count > min(self._size, LARGEST_HEADER):
            what = "is not a complete GGUF file (it ends within its header)"
            raise HeliosError(f"{self.path} {what}; download it again.")
        self._position += count
        return self._file.read(count)

    def _damaged(self, what: str) -> HeliosError:
        return HeliosError(f"{self.path} is a damaged GGUF file: it has {what}; download it again.")
