"""A whole clip in memory, in the forms that callers ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import HeliosError
from ..video.frames import as_output
from .chunk import Chunk

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
        raise HeliosError(f"output_type={output_type!r} is unknown; use one of {', '.join(OUTPUT_TYPES)}.")


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
