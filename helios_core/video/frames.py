"""Frames between the network's floats and a file's pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HeliosError
from ..variants import FPS

# Of the rate: 23.976 is taken for 24.
SAME_RATE = 0.01


def frames_to_uint8(video: Tensor) -> Tensor:
    """Float frames in -1..1, [3, F, H, W] or [1, 3, F, H, W], -> uint8 [F, H, W, 3] on the same device.

    Rounds as diffusers' VideoProcessor does.
    """
    frames = video[0] if video.ndim == 5 and video.shape[0] == 1 else video
    if frames.ndim != 4 or frames.shape[0] != 3 or not frames.is_floating_point():
        raise HeliosError(
            f"The video has shape {list(video.shape)} and dtype {video.dtype}: "
            "give one video of floats, [3, frames, height, width]."
        )
    unit = (frames.permute(1, 2, 3, 0).float() * 0.5 + 0.5).clamp_(0.0, 1.0)
    return unit.mul_(255.0).round_().to(torch.uint8)


def as_output(video: Tensor, output_type: str) -> Any:
    """[B,3,F,H,W] in -1..1 -> the frames of one chunk as ``output_type`` wants them."""
    if output_type == "uint8":
        return torch.stack([frames_to_uint8(clip) for clip in video])
    unit = (video.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit.permute(0, 2, 1, 3, 4)
    return unit.permute(0, 2, 3, 4, 1).cpu().numpy()


def at_rate(count: int, fps: float | None, wanted: float = FPS) -> list[int]:
    """Which of ``count`` frames at ``fps`` are shown when the clip plays as fast at ``wanted``: the nearest in time.

    All of them where the rates agree, or ``fps`` is not known.
    """
    if not fps or abs(fps - wanted) <= SAME_RATE * wanted:
        return list(range(count))
    return [min(count - 1, round(index * fps / wanted)) for index in range(int(count * wanted / fps))]
