"""A film changed a few frames at a time: read, changed, encoded and written in constant memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import HeliosError
from .growing import GrowingVideo
from .remux import finish_video
from .segments import VideoSettings, encode_segment

Change = Callable[[Tensor], Tensor]
"""Frames [F,H,W,3] in 0..1 -> as many or more, of any one size."""


def in_groups(frames: Iterable[np.ndarray], at_once: int) -> Iterator[Tensor]:
    """Frames, uint8 [H,W,3], -> groups of ``at_once``, float [F,H,W,3] in 0..1; the last may be shorter."""
    group: list[np.ndarray] = []
    for frame in frames:
        group.append(frame)
        if len(group) == at_once:
            yield _stacked(group)
            group = []
    if group:
        yield _stacked(group)


def interpolated(groups: Iterable[Tensor], between: Change) -> Iterator[Tensor]:
    """Groups with frames between their frames, and between one group's last and the next one's first.

    Args:
        between: [F,H,W,3] -> [(F-1)m+1,H,W,3].
    """
    last: Tensor | None = None
    for group in groups:
        if last is None:
            made = between(group) if len(group) > 1 else group
        else:
            made = between(torch.cat([last, group]))[1:]
        last = group[-1:]
        yield made


def write_processed(
    groups: Iterable[Tensor],
    growing: Path,
    settings: Callable[[int, int], VideoSettings],
    publish: Callable[[Path], Path],
    sound: Callable[[Any], Any] | None = None,
) -> Path:
    """Writes groups of frames, float [F,H,W,3] in 0..1, as one MP4; what is unfinished is removed when it fails.

    Args:
        growing: a playable file of what is finished.
        settings: given width and height of the first group.
        publish: gives the finished file its name.
        sound: given the container that is written, a track as for :func:`finish_video`.

    Raises:
        HeliosError: no frames, frames of several sizes, or a size that no video has.
    """
    film = GrowingVideo(growing)
    finished = film.path.with_name(f".{uuid.uuid4().hex}.part.mp4")
    try:
        chosen: VideoSettings | None = None
        for group in groups:
            height, width = group.shape[1:3]
            chosen = chosen or settings(width, height)
            if (chosen.width, chosen.height) != (width, height):
                raise HeliosError(f"a frame became {width}x{height} and the first {chosen.width}x{chosen.height}.")
            frames = group[..., :3].float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
            film.append(encode_segment(frames, chosen))
        if chosen is None:
            raise HeliosError("the video has no frames; give at least one.")
        film.cut()
        finish_video(film.path, finished, sound=sound)
        path = publish(finished)
    finally:
        finished.unlink(missing_ok=True)
        film.close(remove=True)
    return path


def _stacked(group: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(group)).float() / 255
