"""VIDEO and IMAGE as frames, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ...helios_core.errors import HeliosError


def check_on_disk(video: Any) -> None:
    """Refuses a VIDEO that is not read from a file."""
    if not isinstance(video, InputImpl.VideoFromFile):
        raise HeliosError("video is no file on disk; connect Render Video or Load Video, or save it first.")


def pixels(images: Tensor) -> Iterator[np.ndarray]:
    """IMAGE [F,H,W,C] in 0..1 -> frames, uint8 [H,W,3].

    Raises:
        HeliosError: no frames.
    """
    if images.ndim != 4 or images.shape[-1] < 3 or not images.shape[0]:
        raise HeliosError(f"video has shape {list(images.shape)}; give frames as IMAGE, [frames, height, width, 3].")
    for image in images:
        yield image[..., :3].float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()


def interruptible(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames; core's interrupt takes effect between two."""
    for frame in frames:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield frame
