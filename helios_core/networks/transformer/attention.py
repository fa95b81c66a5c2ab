"""The two attention layers of a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention_backends import AttentionFunction
from .kernels import may_overwrite, rms_norm, rotate

HISTORY_KEY_MAX_SCALE = 10.0


class SelfAttention(nn.Module):
    """Joint attention over history and noisy tokens, with rotary positions."""

    def __init__(
        self,
        dim: int,
        heads: int,
        eps: float,
        amplify_history: str | None,
        operations: Any,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.heads = heads
        _add_projections(self, dim, eps, operations, device, dtype)
        if amplify_history is not None:
            count = heads if amplify_history == "per_head" else 1
            self.history_key_scale = nn.Parameter(torch.ones(count, device=device, dtype=torch.float32))
        else:
            self.history_key_scale = None

    def forward(
        self, x: Tensor, rope: Tensor, history_length: int, attention: AttentionFunction, queries_from: int = 0
    ) -> Tensor:
        """x [B,L,C] (history tokens first) -> [B,L-queries_from,C].

        ``queries_from`` drops the output of leading tokens that nobody reads (the last block's history).
        """
        q = rotate(rms_norm(self.q(x[:, queries_from:]), self.norm_q), rope[queries_from:], self.heads)
        k = rotate(rms_norm(self.k(x), self.norm_k), rope, self.heads)
        if self.history_key_scale is not None and history_length:
            k = self._amplify_history(k, history_length)
        return self.o(attention(q, k, self.v(x), self.heads))

    def _amplify_history(self, k: Tensor, history_length: int) -> Tensor:
        scale = 1.0 + torch.sigmoid(self.history_key_scale.to(k.device)) * (HISTORY_KEY_MAX_SCALE - 1.0)
        by_head = k.unflatten(-1, (self.heads, -1))
        if may_overwrite(k):
            by_head[:, :history_length].mul_(scale.view(-1, 1))
            return k
        history = (by_head[:, :history_length] * scale.view(-1, 1)).to(k.dtype)
        return torch.cat([history, by_head[:, history_length:]], dim=1).flatten(-2)


class CrossAttention(nn.Module):
    """Attention to the text; its keys and values are prepared once per prompt."""

    def __init__(
        self,
        dim: int,
        heads: int,
        eps: float,
        operations: Any,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.heads = heads
        _add_projections(self, dim, eps, operations, device, dtype)

    def prepare(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Projected text [B,512,C] -> keys and values, each [B,512,C]."""
        return rms_norm(self.k(text), self.norm_k), self.v(text)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], attention: AttentionFunction) -> Tensor:
        """x [B,L,C] -> [B,L,C]."""
        k, v = keys_values
        return self.o(attention(rms_norm(self.q(x), self.norm_q), k, v, self.heads))


def _add_projections(module: nn.Module, dim: int, eps: float, operations: Any, device, dtype) -> None:
    for name in ("q", "k", "v", "o"):
        setattr(module, name, operations.Linear(dim, dim, device=device, dtype=dtype))
    for name in ("norm_q", "norm_k"):
        setattr(
            module,
            name,
            operations.RMSNorm(dim, eps=eps, elementwise_affine=True, device=device, dtype=dtype),
        )
