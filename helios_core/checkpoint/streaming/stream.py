"""Two device buffers that blocks pass through: one is computed on while a thread fills the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from .buffers import BlockLayout, Slot, Staging
from .sources import BlockSource

THREAD_NAME = "helios-blocks"


@dataclass(frozen=True)
class _Ahead:
    """A block on its way into a slot."""

    index: int
    names: tuple[str, ...]
    slot: Slot
    future: Future[None]


class BlockStream:
    """Gives a transformer's blocks one at a time, reading ahead.

    Buffers and the reader thread exist from the first block until :meth:`close`, or until the stream is dropped;
    a closed stream opens again at the next block.
    """

    def __init__(self, source: BlockSource, template: nn.Module, count: int, layout: BlockLayout, device: torch.device):
        """``template`` is one block on the meta device; ``count`` blocks have its ``layout``."""
        self.device, self.count = device, count
        self._source, self._template, self._layout = source, template, layout
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots: list[Slot] = []
        self._reader: ThreadPoolExecutor | None = None
        self._staging: Staging | None = None
        self._ahead: _Ahead | None = None
        self._turn = 0

    @contextmanager
    def block(
        self, index: int, names: Iterable[str] | None = None, wrap: bool = True, step: int = 1
    ) -> Iterator[nn.Module]:
        """Block ``index``, on the device, valid within the ``with``; of its parameters only ``names`` where given.

        Meanwhile the next block is read, ``step`` blocks on (-1 in a backward pass); after the last one and with
        ``wrap`` the first, where the next step begins.

        Raises:
            HeliosError: the weights can no longer be read.
        """
        wanted = tuple(self._layout.places if names is None else names)
        if not self._slots:
            self._open()
        slot = self._arrival(index, wanted)
        following = (index + step) % self.count if wrap else index + step
        if 0 <= following < self.count:
            self._request(following, wanted)
        try:
            yield slot.block
        finally:
            slot.release()

    def close(self) -> None:
        """Ends the reader thread and frees the buffers."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.shutdown(wait=True, cancel_futures=True)
        self._ahead, self._staging = None, None
        self._slots.clear()

    @property
    def buffers(self) -> list[torch.Tensor]:
        """The device buffers, none before the first block."""
        return [slot.buffer for slot in self._slots]

    def _open(self) -> None:
        self._slots = [Slot(self._template, self._layout, self.device, self._copies) for _ in range(2)]
        self._staging = Staging(self.device)
        self._reader = ThreadPoolExecutor(1, THREAD_NAME)

    def _arrival(self, index: int, names: tuple[str, ...]) -> Slot:
        """The slot that holds this block, whether or not it was what was read ahead."""
        if self._ahead is None or (self._ahead.index, self._ahead.names) != (index, names):
            self._arrived()
            self._request(index, names)
        slot = self._arrived()
        assert slot is not None
        return slot

    def _request(self, index: int, names: tuple[str, ...]) -> None:
        assert self._reader is not None and self._staging is not None
        self._turn = 1 - self._turn
        slot = self._slots[self._turn]
        # Nothing that is submitted refers to the stream: a dropped stream takes its thread with it.
        future = self._reader.submit(_load, slot, self._source, index, names, self._staging, self._copies)
        self._ahead = _Ahead(index, names, slot, future)

    def _arrived(self) -> Slot | None:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        try:
            ahead.future.result()
        except BaseException:
            self.close()
            raise
        ahead.slot.wait_until_loaded()
        return ahead.slot


def _load(
    slot: Slot,
    source: BlockSource,
    index: int,
    names: tuple[str, ...],
    staging: Staging,
    copies: torch.cuda.Stream | None,
) -> None:
    # Buffers that were made in inference mode may be written in inference mode only, others in either.
    with torch.inference_mode(), nullcontext() if copies is None else torch.cuda.stream(copies):
        slot.begin_loading()
        for piece in source.pieces(index, names, staging):
            slot.put(piece)
            staging.sent()
        slot.loaded()
