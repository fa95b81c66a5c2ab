"""A process that only decodes, while those before it sample the film's next chunk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import HeliosError
from .team import in_touch

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Link:
    """What process 0 and process ``rank`` say to each other, over ``group``, which has these two."""

    rank: int
    group: Any

    def tell(self, source: int, content: Any, tensor: Tensor | None = None) -> None:
        """Sends ``content`` and the tensor that goes with it; ``source`` is the sender."""
        with in_touch():
            dist.broadcast_object_list([content], source, group=self.group, device=HOST)
            if tensor is not None:
                dist.broadcast(tensor.contiguous(), source, group=self.group)

    def told(self, source: int) -> Any:
        """The next content of the other side."""
        content: list[Any] = [None]
        with in_touch():
            dist.broadcast_object_list(content, source, group=self.group, device=HOST)
        return content[0]

    def tensor(self, source: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The tensor that the other side announced."""
        tensor = torch.empty(shape, dtype=dtype)
        with in_touch():
            dist.broadcast(tensor, source, group=self.group)
        return tensor


class Decoder:
    """Process 0's side: chunks wait their turn on a thread, so that it goes on with its own work."""

    def __init__(self, link: Link):
        self._link = link
        self._thread = ThreadPoolExecutor(1, "helios-decoder")

    def frames(self, latents: Tensor) -> Future[Tensor]:
        """Begins to decode one chunk's latents [B,16,9,h,w] to uint8 frames [33B,H,W,3] on the CPU.

        The result raises HeliosError where the other process could not, and LostProcessError where it is lost.
        """
        return self._thread.submit(self._ask, latents.to(HOST, torch.float32))

    def _ask(self, latents: Tensor) -> Tensor:
        self._link.tell(0, latents.shape, latents)
        answer = self._link.told(self._link.rank)
        if isinstance(answer, str):
            raise HeliosError(f"process {self._link.rank}, which decodes: {answer}")
        return self._link.tensor(self._link.rank, answer, torch.uint8)

    def end(self) -> None:
        """Ends the other process's :func:`serve`, behind the chunks that wait."""
        self._thread.submit(self._link.tell, 0, None).result()


def serve(link: Link, decode: Callable[[Tensor], Tensor]) -> None:
    """The other side: decodes what process 0 asks for until its film ends.

    Args:
        decode: latents [B,16,9,h,w] -> uint8 frames [33B,H,W,3].

    Raises:
        LostProcessError: process 0 ended or did not answer.
    """
    while (shape := link.told(0)) is not None:
        latents = link.tensor(0, shape, torch.float32)
        try:
            frames = decode(latents).to(HOST)
        except Exception as error:  # process 0 says so, and ends the film
            link.tell(link.rank, str(error) or type(error).__name__)
        else:
            link.tell(link.rank, frames.shape, frames)
