"""Which of the options that trade exactness, memory and speed go together."""

from __future__ import annotations

import torch

from ...errors import HeliosError
from .fp8 import check_device


def check_speed_options(offload: str | None, options: dict[str, bool], device: torch.device | str) -> None:
    """Refuses options that do not go together, before anything is read.

    Raises:
        HeliosError: streamed blocks cannot be compiled, recorded or narrowed, or the device cannot do what is asked.
    """
    chosen = [name for name, value in options.items() if value]
    if offload is not None and chosen:
        raise HeliosError(f"{chosen[0]}=True does not work with offload={offload!r}: blocks come and go; drop one.")
    if "cuda_graphs" in chosen and torch.device(device).type != "cuda":
        raise HeliosError(f"cuda_graphs=True needs a CUDA device, not device={str(device)!r}; leave it off.")
    if "fp8_matmul" in chosen:
        check_device(device)
