"""Fingerprints: the same text for the same content, in any process on any day.

They name finished chunks by everything that determines them, so nothing here may depend on object identity, on
the order of a set, or on where and when a file was written.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
import struct
import types
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.gguf import any_header

DIGEST_BYTES = 20
# One block in the middle of every tensor, and blocks spread over files of other kinds.
BLOCK_BYTES = 4096
SPREAD_BLOCKS = 256

_files: dict[tuple[str, int, int], str] = {}


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


Known = Callable[[Any], "str | None"]


def fingerprint(*values: Any, known: Known = lambda _: None) -> str:
    """Hexadecimal digest of nested values: numbers, text, tensors, containers, dataclasses, objects, functions.

    Tensors count by type, shape and bytes; objects by class and attributes, networks by architecture and weights;
    functions by code, defaults and the values they close over.

    Args:
        known: names an object that is accounted for elsewhere, in place of its content (None: not such a one).
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    _Writer(digest, known).write(values)
    return digest.hexdigest()


class _Writer:
    """Feeds a value to a hash, every part with its type and length, so that no two values read alike."""

    def __init__(self, digest: _Hash, known: Known):
        self._digest, self._known = digest, known
        self._open: dict[int, int] = {}

    def write(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype, torch.device)):
            self._part(type(value).__name__, repr(value).encode("utf-8", "surrogatepass"))
        elif isinstance(value, (bytes, bytearray, memoryview)):
            self._part("bytes", value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._part(f"array {value.dtype} {value.shape}", np.ascontiguousarray(value).tobytes())
        elif isinstance(value, enum.Enum):
            self._part("enum", f"{type(value).__qualname__}.{value.name}".encode())
        elif isinstance(value, PurePath):
            self._part("path", str(value).encode("utf-8", "surrogatepass"))
        elif (name := self._known(value)) is not None:
            self._part("known", name.encode())
        elif id(value) in self._open:
            # A cycle: which of the objects around it, counted from the outermost.
            self._part("again", str(self._open[id(value)]).encode())
        else:
            self._open[id(value)] = len(self._open)
            self._compound(value)
            del self._open[id(value)]

    def _compound(self, value: Any) -> None:
        if isinstance(value, Mapping):
            entries = [(fingerprint(key, known=self._known), item) for key, item in value.items()]
            self._many("mapping", [x for entry in sorted(entries, key=lambda e: e[0]) for x in entry])
        elif isinstance(value, (list, tuple)):
            self._many("sequence", value)
        elif isinstance(value, (set, frozenset)):
            self._many("set", sorted(fingerprint(item, known=self._known) for item in value))
        elif isinstance(value, torch.nn.Module):
            self._module(value)
        elif isinstance(value, functools.partial):
            self._many("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self._many("method", [value.__func__, value.__self__])
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType)):
            self._part("name", f"{_module(value)}.{value.__name__}".encode())
        elif dataclasses.is_dataclass(value):
            self._many(_name(value), [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)])
        else:
            self._many(_name(value), [_attributes(value)])

    def _part(self, kind: str, data: Any) -> None:
        name = kind.encode()
        size = memoryview(data).nbytes
        self._digest.update(struct.pack("<IQ", len(name), size) + name)
        self._digest.update(data)

    def _many(self, kind: str, items: Iterable[Any]) -> None:
        items = list(items)
        self._part(kind, str(len(items)).encode())
        for item in items:
            self.write(item)

    def _tensor(self, value: Tensor) -> None:
        data = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        self._part(f"tensor {value.dtype} {list(value.shape)}", data)

    def _module(self, value: torch.nn.Module) -> None:
        if hasattr(value, "_orig_mod"):  # what torch.compile wraps a network in
            self._many("compiled", [value._orig_mod])
            return
        layers = [(name, _name(child), child.extra_repr()) for name, child in value.named_modules()]
        self._many(_name(value), [layers, dict(value.named_parameters()), dict(value.named_buffers())])

    def _function(self, value: types.FunctionType) -> None:
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        name = f"function {_module(value)}.{value.__qualname__}"
        self._many(name, [_code(value.__code__), value.__defaults__, value.__kwdefaults__, cells])


def _code(code: types.CodeType) -> list[Any]:
    """Instructions, the names and constants they use, and the functions defined inside."""
    constants = [_code(x) if isinstance(x, types.CodeType) else x for x in code.co_consts]
    return [code.co_code, code.co_names, constants]


def _name(value: Any) -> str:
    return f"{_module(type(value))}.{type(value).__qualname__}"


def _module(value: Any) -> str:
    """The last part of a module's name: ComfyUI puts the path of the installation into those of node packs."""
    return re.split(r"[./\\]", getattr(value, "__module__", None) or "")[-1]


def _attributes(value: Any) -> dict[str, Any]:
    """Instance attributes, in ``__dict__`` or in slots. An id that says nothing about content has none."""
    if isinstance(value, uuid.UUID):
        return {}
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    return {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def file_fingerprint(path: str | Path) -> str:
    """Digest of a weight file's content, without reading all of it.

    Size, the whole safetensors header, and 4 KB out of the middle of every tensor (of other files, 256 blocks
    spread evenly): a released model is 28 GB, which takes minutes to read from a hard disk, and training changes
    every tensor nearly everywhere. What it cannot see is a file of equal size and header that was edited by hand
    in a few values. Path and time are left out of the digest, so a moved or copied model is the same one; they
    only tell when to read again.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path).resolve()
    state = path.stat()
    known = (str(path), state.st_size, state.st_mtime_ns)
    if known not in _files:
        _files[known] = _read_fingerprint(path, state.st_size)
    return _files[known]


def folder_fingerprint(folder: str | Path, patterns: Iterable[str] = ("*.json", "*.safetensors")) -> str:
    """Digest of the weight and configuration files in ``folder`` (not below it), by name and content."""
    files = sorted({file for pattern in patterns for file in Path(folder).glob(pattern)})
    return fingerprint([(file.name, file_fingerprint(file)) for file in files])


def _read_fingerprint(path: Path, size: int) -> str:
    digest = hashlib.blake2b(str(size).encode(), digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        for start, length in _blocks(path, size):
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def _blocks(path: Path, size: int) -> list[tuple[int, int]]:
    """(offset, bytes) of what is read: tensors of a safetensors or GGUF file, else blocks spread evenly."""
    if size <= SPREAD_BLOCKS * BLOCK_BYTES:
        return [(0, size)]
    try:
        header = any_header(path)
    except ValueError:  # another kind of file
        step = (size - BLOCK_BYTES) / (SPREAD_BLOCKS - 1)
        return [(int(i * step), BLOCK_BYTES) for i in range(SPREAD_BLOCKS)]
    spans = sorted((entry.start, entry.end) for entry in header.tensors.values())
    middles = [((a + b) // 2, b - a) for a, b in spans]
    blocks = [(middle - min(BLOCK_BYTES, n) // 2, min(BLOCK_BYTES, n)) for middle, n in middles]
    return [(0, header.data_start), *blocks]
