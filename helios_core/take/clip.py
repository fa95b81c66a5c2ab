"""A whole clip in memory, in the forms that callers ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import HeliosError, shortened
from ..video.frames import as_output
from .chunk import Chunk
from .video import Frames

OUTPUT_TYPES = ("np", "pt", "uint8", "latent")


@dataclass(frozen=True)
class HeliosOutput:
    """A whole clip. ``frames`` as asked for by ``output_type`` (None for ``latent``); ``latents`` are the
    generated chunks [B,16,9n,H/8,W/8], normalised model space.

    Of several processes that make a clip together, all but the first have no frames and empty latents.
    """

    frames: Any
    latents: Tensor


def check_output_type(output_type: str) -> None:
    """Refuses a form that no clip has."""
    if output_type not in OUTPUT_TYPES:
        raise HeliosError(f"output_type={shortened(output_type)} is unknown; use one of {', '.join(OUTPUT_TYPES)}.")


def whole_clip(chunks: Iterable[Chunk], decode: Callable[[Tensor], Tensor], output_type: str) -> HeliosOutput:
    """The clip of ``chunks``; ``decode`` makes frames [B,3,33,H,W] in -1..1 of a chunk's latents."""
    latents, frames = [], []
    for chunk in chunks:
        latents.append(chunk.latents)
        if output_type != "latent":
            frames.append(as_output(decode(chunk.latents), output_type))
    concatenate = np.concatenate if output_type == "np" else torch.cat
    return HeliosOutput(
        concatenate(frames, 1) if frames else None, torch.cat(latents, dim=2) if latents else torch.empty(0)
    )


@torch.no_grad()
def finished(
    chunks: Iterable[Chunk],
    generator: torch.Generator,
    device: torch.device,
    decode: Callable[[Tensor], Frames] | None,
) -> Iterator[Chunk]:
    """A film's chunks as callers get them: latents on ``device``, with frames if there is ``decode``.

    Where frames come later, a chunk follows when the next one is sampled. ``generator`` is left as after the last.

    Args:
        decode: latents [B,16,9,h,w] -> uint8 frames [33B,H,W,3], now or later.
    """
    behind: tuple[Chunk, Future[Tensor]] | None = None
    for made in chunks:
        assert made.history.random_state is not None
        generator.set_state(made.history.random_state)
        chunk = replace(made, latents=made.latents.to(device))
        frames = None if decode is None else decode(chunk.latents)
        if not isinstance(frames, Future):
            yield _shown(chunk, frames)
            continue
        if behind is not None:
            yield _shown(behind[0], behind[1].result())
        behind = chunk, frames
    if behind is not None:
        yield _shown(behind[0], behind[1].result())


def _shown(chunk: Chunk, frames: Tensor | None) -> Chunk:
    return chunk if frames is None else replace(chunk, frames=frames.unflatten(0, (chunk.latents.shape[0], -1)))
