"""Frames between the network's floats and a file's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import HeliosError

OUTPUT_TYPES = ("np", "pt", "uint8", "latent")


@dataclass(frozen=True)
class HeliosOutput:
    """A whole clip. ``frames`` as asked for by ``output_type`` (None for ``latent``); ``latents`` are the
    generated chunks [B,16,9n,H/8,W/8], normalised model space."""

    frames: Any
    latents: Tensor


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
