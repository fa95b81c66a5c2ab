"""What the transformer computes once per prompt or once per chunk instead of once per step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PreparedText:
    """Cross-attention keys and values [B,512,C] of every block, for one batch of prompts."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class PreparedHistory:
    """Patch tokens [B,L,C] of one chunk's history context and their rotary table [L,D/2,2]."""

    tokens: Tensor
    rope: Tensor
