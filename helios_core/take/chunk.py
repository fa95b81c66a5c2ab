"""A finished chunk."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .history import History


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a film.

    Attributes:
        index: its number in the video, from 0.
        latents: [B,16,9,H/8,W/8] as its maker keeps them: normalised model space headless, VAE space in ComfyUI.
        history: the history after it.
        key: its name in a chunk store; empty where nothing is stored.
        reused: whether the store had it.
        frames: [B,33,H,W,3] uint8, where they were asked for.
    """

    index: int
    latents: Tensor
    history: History
    key: str = ""
    reused: bool = False
    frames: Tensor | None = None

    @property
    def departed(self) -> bool:
        """Whether anti-drift found it away from the film so far, and noised it where later chunks see it."""
        return self.history.anti_drift is not None and self.history.anti_drift.corrupted
