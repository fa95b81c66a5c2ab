"""Where streamed blocks come from: the safetensors file itself, or page-locked copies in host memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...errors import HeliosError
from ..header import TensorEntry
from ..quantised import Decoder
from .buffers import STAGING_BYTES, BlockLayout, Piece, Staging


@dataclass(frozen=True)
class Stored:
    """One tensor of a block as its file has it; ``decode`` is that of a quantised weight."""

    path: Path
    entry: TensorEntry
    decode: Decoder | None = None


class BlockSource(Protocol):
    """Gives the parameters of blocks, piece by piece, each of at most ``STAGING_BYTES``."""

    def pieces(self, block: int, names: Iterable[str], staging: Staging) -> Iterator[Piece]:
        """``names`` of one block. A piece is valid until the next one: it may lie in a buffer of ``staging``.

        Raises:
            HeliosError: the file has changed, vanished, or cannot be read.
        """
        ...


class DiskBlocks:
    """Reads blocks from safetensors files whenever they are wanted; host memory holds the staging buffers alone.

    It reads rather than maps: pages of a mapping count as the process's memory, and a file that is cut short
    while it is mapped ends the process instead of raising an error.
    """

    def __init__(self, blocks: Sequence[Mapping[str, Stored]]):
        self.blocks = blocks

    def pieces(self, block: int, names: Iterable[str], staging: Staging) -> Iterator[Piece]:
        """See :class:`BlockSource`."""
        wanted = sorted(((self.blocks[block][name], name) for name in names), key=lambda item: _position(item[0]))
        for path, tensors in groupby(wanted, key=lambda item: item[0].path):
            try:
                with path.open("rb", buffering=0) as file:
                    for stored, name in tensors:
                        yield from self._read(file, stored, name, staging)
            except OSError as error:
                raise HeliosError(f"{path} can no longer be read ({error.strerror}); check the disk.") from None

    def _read(self, file, stored: Stored, name: str, staging: Staging) -> Iterator[Piece]:
        entry = stored.entry
        per_piece = _elements_per_piece(entry.dtype, stored.decode)
        file.seek(entry.start)
        for first in range(0, entry.count, per_piece):
            count = min(per_piece, entry.count - first)
            buffer = staging.next()[: count * entry.dtype.itemsize]
            _fill(file, memoryview(buffer.numpy()), stored.path)
            yield Piece(name, first, buffer.view(entry.dtype), stored.decode)


class PinnedBlocks:
    """Holds every block in host memory, page-locked on CUDA, in the narrower of the file's and the run-time type."""

    def __init__(self, disk: DiskBlocks, layout: BlockLayout, device: torch.device):
        self._held = [_held_types(block, layout) for block in disk.blocks]
        self._decode = [{name: stored.decode for name, stored in block.items()} for block in disk.blocks]
        self.nbytes = sum(held.nbytes for held in self._held)
        _refuse_more_than_there_is(self.nbytes)
        staging = Staging(torch.device("cpu"))
        self._views = []
        locked: list[int] = []
        # At the process's end the driver may be gone, and frees everything anyway.
        weakref.finalize(self, _unlock, locked, device).atexit = False
        for number, held in enumerate(self._held):
            buffer = torch.empty(held.nbytes, dtype=torch.uint8)
            views = {name: view.view(-1) for name, view in held.views(buffer).items()}
            for piece in disk.pieces(number, held.places, staging):
                views[piece.name][piece.first : piece.first + piece.numbers.numel()].copy_(piece.numbers)
            if device.type == "cuda":
                _lock(buffer, device)
                locked.append(buffer.data_ptr())
            self._views.append(views)

    def pieces(self, block: int, names: Iterable[str], staging: Staging) -> Iterator[Piece]:
        """See :class:`BlockSource`."""
        for name in names:
            numbers, decode = self._views[block][name], self._decode[block][name]
            size = _elements_per_piece(numbers.dtype, decode)
            for first in range(0, numbers.numel(), size):
                yield Piece(name, first, numbers[first : first + size], decode)


def _elements_per_piece(dtype: torch.dtype, decode: Decoder | None) -> int:
    # Narrow types pass through float32 on the device.
    numbers = STAGING_BYTES // max(dtype.itemsize, torch.float32.itemsize)
    return numbers if decode is None else decode.stored(numbers)


def _held_types(block: Mapping[str, Stored], layout: BlockLayout) -> BlockLayout:
    types = {
        name: min(block[name].entry.dtype, place.dtype, key=lambda dtype: dtype.itemsize)
        for name, place in layout.places.items()
    }
    return BlockLayout.packed({name: torch.Size(block[name].entry.stored_shape) for name in layout.places}, types)


def _position(stored: Stored) -> tuple[Path, int]:
    return stored.path, stored.entry.start


def _fill(file, target: memoryview, path: Path) -> None:
    while target:
        count = file.readinto(target)
        if not count:
            raise HeliosError(f"{path} has become shorter while it was in use; download it again.")
        target = target[count:]


def _refuse_more_than_there_is(needed: int) -> None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return  # Windows: it fails to allocate instead
    if needed > total:
        raise HeliosError(
            f"offload='cpu' needs {needed / 1e9:.1f} GB of host memory for the blocks and this machine has "
            f"{total / 1e9:.1f} GB; use offload='disk'."
        )


def _lock(buffer: Tensor, device: torch.device) -> None:
    # torch's own page-locked allocator would round 703 MB, a block in bf16, up to 1 GiB.
    portable = 1
    if int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, portable)):
        with suppress(RuntimeError):  # the driver tells whoever comes next of the failure once more
            torch.zeros(1, device=device).add_(1).item()
        raise HeliosError(
            f"offload='cpu' cannot page-lock another {buffer.nbytes / 1e9:.1f} GB of host memory; use offload='disk'."
        )


def _unlock(pointers: list[int], device: torch.device) -> None:
    if pointers:
        torch.cuda.synchronize(device)
    for pointer in pointers:
        torch.cuda.cudart().cudaHostUnregister(pointer)
