"""Another anchor in the middle of a film: a new scene keeps its own first frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import HeliosError
from ..variants import CHUNK_LATENT_FRAMES
from .history import History


def newest_frame(history: History) -> Tensor:
    """The first latent frame of the newest finished chunk, as later chunks see it, [B,16,1,h,w].

    Raises:
        HeliosError: no chunk is finished.
    """
    if not history.chunk:
        raise HeliosError(
            "history has no finished chunk to take an anchor from; put the node behind Sample Chunk or Chunk Chain, "
            "or connect an image."
        )
    return history.latents[:, :, -CHUNK_LATENT_FRAMES:][:, :, :1]


def with_anchor(history: History, anchor: Tensor, strength: float = 1.0) -> History:
    """``history`` with its anchor replaced, or mixed with ``strength`` parts of another.

    Args:
        anchor: [B,16,1,h,w] or [1,16,1,h,w], normalised model space.

    Raises:
        HeliosError: a strength out of range, nothing to mix with, or an anchor of another size.
    """
    if not 0 <= strength <= 1:
        raise HeliosError(f"strength={strength} must be from 0 (the anchor as it is) to 1 (the new one alone).")
    wanted = (1, *history.latents.shape[3:])
    if anchor.shape[2:] != wanted or anchor.shape[0] not in (1, len(history.latents)):
        raise HeliosError(
            f"the anchor has shape {list(anchor.shape)} for a history of {history.width}x{history.height} and a batch "
            f"of {len(history.latents)}; give one picture of that size."
        )
    if strength == 0:
        return history
    anchor = anchor.to(history.latents).expand(len(history.latents), -1, -1, -1, -1)
    if strength < 1:
        if history.anchor is None:
            raise HeliosError(f"history has no anchor yet to mix with at strength={strength}; set strength to 1.")
        anchor = torch.lerp(history.anchor, anchor, strength)
    # A choice made now must not be undone when chunk 1 would anchor the video anew.
    return replace(history, anchor=anchor.clone(), skip_first_chunk=False)
