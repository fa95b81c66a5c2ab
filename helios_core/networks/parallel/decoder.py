"""A process that only decodes, while those before it sample the film's next chunk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ...errors import HeliosError
from .channel import HOST, Channel


class Decoder:
    """Process 0's side of ``channel``: chunks wait their turn on a thread, so that it goes on with its own work."""

    def __init__(self, channel: Channel, rank: int):
        self._channel, self._rank = channel, rank
        self._thread = ThreadPoolExecutor(1, "helios-decoder")

    def frames(self, latents: Tensor) -> Future[Tensor]:
        """Begins to decode one chunk's latents [B,16,9,h,w] to uint8 frames [33B,H,W,3] on the CPU.

        The result raises HeliosError where the other process could not, and LostProcessError where it is lost.
        """
        return self._thread.submit(self._ask, latents.to(HOST, torch.float32))

    def _ask(self, latents: Tensor) -> Tensor:
        self._channel.tell(0, latents.shape, [latents])
        answer = self._channel.told(self._rank)
        if isinstance(answer, str):
            raise HeliosError(f"process {self._rank}, which decodes: {answer}")
        return self._channel.tensor(self._rank, answer, torch.uint8)

    def end(self) -> None:
        """Ends the other process's :func:`serve`, behind the chunks that wait."""
        self._thread.submit(self._channel.tell, 0, None).result()


def serve(channel: Channel, rank: int, decode: Callable[[Tensor], Tensor]) -> None:
    """The other side, process ``rank``: decodes what process 0 asks for until its film ends.

    Args:
        decode: latents [B,16,9,h,w] -> uint8 frames [33B,H,W,3].

    Raises:
        LostProcessError: process 0 ended or did not answer.
    """
    while (shape := channel.told(0)) is not None:
        latents = channel.tensor(0, shape, torch.float32)
        try:
            frames = decode(latents).to(HOST)
        except Exception as error:  # process 0 says so, and ends the film
            channel.tell(rank, str(error) or type(error).__name__)
        else:
            channel.tell(rank, frames.shape, [frames])
