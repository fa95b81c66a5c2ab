"""What blocks pass through: host buffers that pieces wait in, and device buffers that blocks run from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..load import keeps_float32
from ..quantised import Decoder

# A power of two, because torch's page-locked allocator rounds up to one.
STAGING_BYTES = 32 << 20
_ALIGNMENT = 256


@dataclass(frozen=True)
class Piece:
    """Part of a parameter in host memory: flat ``numbers``, from element ``first`` on, in the type of storage."""

    name: str
    first: int
    numbers: Tensor
    decode: Decoder | None


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a block buffer: ``start`` in bytes."""

    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class BlockLayout:
    """Names, shapes and run-time types of a block's parameters; every block of a transformer has the same."""

    places: Mapping[str, Place]
    nbytes: int

    @classmethod
    def of(cls, block: nn.Module, dtype: torch.dtype) -> BlockLayout:
        """``block`` may be on the meta device; ``dtype`` is the model's."""
        shapes = {name: parameter.shape for name, parameter in block.named_parameters()}
        return cls.packed(shapes, {name: torch.float32 if keeps_float32(name) else dtype for name in shapes})

    @classmethod
    def packed(cls, shapes: Mapping[str, torch.Size], types: Mapping[str, torch.dtype]) -> BlockLayout:
        """Parameters one after another, aligned for any kernel."""
        places, position = {}, 0
        for name, shape in shapes.items():
            places[name] = Place(position, shape, types[name])
            position += -(-places[name].nbytes // _ALIGNMENT) * _ALIGNMENT
        return cls(places, position)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The parameters as views of ``buffer`` [nbytes] uint8."""
        return {
            name: buffer[place.start : place.start + place.nbytes].view(place.dtype).view(place.shape)
            for name, place in self.places.items()
        }


class Staging:
    """Two host buffers in turn; on CUDA page-locked, so that one is filled while the other is being copied."""

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._buffers = [torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=self._on_cuda) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if self._on_cuda else []
        self._turn = 0

    def next(self) -> Tensor:
        """The other buffer [STAGING_BYTES] uint8, once nothing is copied from it any more."""
        self._turn = 1 - self._turn
        if self._on_cuda:
            self._copied[self._turn].synchronize()
        return self._buffers[self._turn]

    def sent(self) -> None:
        """The copies that the current stream has been given are the last ones from the buffer handed out."""
        if self._on_cuda:
            self._copied[self._turn].record()


class Slot:
    """One device buffer and the block whose parameters are views of it.

    On CUDA two events order the streams: ``_loaded`` lets computing begin, ``_free`` the next block's copies.
    """

    def __init__(
        self, template: nn.Module, layout: BlockLayout, device: torch.device, copies: torch.cuda.Stream | None
    ):
        self.buffer = torch.empty(layout.nbytes, dtype=torch.uint8, device=device)
        self._views = layout.views(self.buffer)
        self.block = copy.deepcopy(template)
        self.block.load_state_dict(self._views, assign=True)
        self.block.requires_grad_(False).eval()
        self._copies = copies
        if copies is not None:
            self._loaded, self._free = torch.cuda.Event(), torch.cuda.Event()
            # The allocator may hand out memory that queued kernels still use, and take it back under a copy.
            self._free.record(torch.cuda.current_stream(device))
            self.buffer.record_stream(copies)

    def begin_loading(self) -> None:
        """Copies given to the copying stream from here on wait for the computing on the previous block."""
        if self._copies is not None:
            self._copies.wait_event(self._free)

    def put(self, piece: Piece) -> None:
        """Writes part of a parameter in its run-time type, with the arithmetic of :func:`checkpoint.load.place`."""
        decode, first, count = piece.decode, piece.first, piece.numbers.numel()
        if decode is not None:
            first, count = decode.numbers(first), decode.numbers(count)
        target = self._views[piece.name].view(-1)[first : first + count]
        if decode is not None:
            target.copy_(decode(piece.numbers.to(target.device, non_blocking=True)))
        elif piece.numbers.dtype == target.dtype:
            target.copy_(piece.numbers, non_blocking=True)
        else:
            # Moved first: a copy between devices and types at once would convert on the host and wait.
            target.copy_(piece.numbers.to(target.device, non_blocking=True))

    def loaded(self) -> None:
        """Nothing more is copied into this slot."""
        if self._copies is not None:
            self._loaded.record(self._copies)

    def wait_until_loaded(self) -> None:
        """Computing queued from here on waits for the copies."""
        if self._copies is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self._loaded)

    def release(self) -> None:
        """The computing queued so far is the last on this block."""
        if self._copies is not None:
            self._free.record(torch.cuda.current_stream(self.buffer.device))
