"""One transformer block; history and noisy tokens each have one row of modulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import AttentionFunction, CrossAttention, SelfAttention


@dataclass(frozen=True)
class BlockContext:
    """What every block of one forward shares.

    ``history_modulation`` [1 or B,6,C] belongs to the leading ``history_length`` tokens,
    ``noisy_modulation`` [B,6,C] to the rest (DESIGN section 6.9); ``rope`` is [L,D/2,2].
    """

    history_length: int
    history_modulation: Tensor
    noisy_modulation: Tensor
    rope: Tensor
    attention: AttentionFunction


class HeliosBlock(nn.Module):
    """Self-attention over all tokens, cross-attention of the noisy ones, feed-forward."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        eps: float,
        cross_attn_norm: bool,
        guidance_cross_attn: bool,
        amplify_history: str | None,
        operations: Any,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.eps = eps
        self.guidance_cross_attn = guidance_cross_attn
        self.self_attn = SelfAttention(dim, heads, eps, amplify_history, operations, device, dtype)
        self.cross_attn = CrossAttention(dim, heads, eps, operations, device, dtype)
        self.norm3 = (
            operations.LayerNorm(dim, eps=eps, elementwise_affine=True, device=device, dtype=dtype)
            if cross_attn_norm
            else nn.Identity()
        )
        self.ffn = nn.Sequential(
            operations.Linear(dim, ffn_dim, device=device, dtype=dtype),
            nn.GELU(approximate="tanh"),
            operations.Linear(ffn_dim, dim, device=device, dtype=dtype),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim, device=device, dtype=torch.float32))

    def forward(
        self,
        x: Tensor,
        context: BlockContext,
        text_keys_values: tuple[Tensor, Tensor],
        noisy_only: bool = False,
    ) -> Tensor:
        """x [B,L,C] -> [B,L,C], or without the history tokens when ``noisy_only`` (for the last block)."""
        history = context.history_length
        table = self.modulation.to(x.device)
        history_rows = (table + context.history_modulation).unsqueeze(2).unbind(1)
        noisy_rows = (table + context.noisy_modulation).unsqueeze(2).unbind(1)
        rows = list(zip(history_rows, noisy_rows, strict=True))

        dropped = history if noisy_only else 0
        y = modulated_norm(x, rows[0], rows[1], history, self.eps)
        y = self.self_attn(y, context.rope, history, context.attention, queries_from=dropped)
        x, history = x[:, dropped:], history - dropped
        x = gated_residual(x, y, rows[2], history)

        first = history if self.guidance_cross_attn else 0
        y = self.norm3(x[:, first:].to(compute_dtype(self.norm3, x.dtype))).to(x.dtype)
        y = self.cross_attn(y, text_keys_values, context.attention)
        x[:, first:] += y

        y = self.ffn(modulated_norm(x, rows[3], rows[4], history, self.eps))
        return gated_residual(x, y, rows[5], history)


def compute_dtype(module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The wider of ``dtype`` and the type of the module's weights.

    The reference keeps the time embedding and norm3 float32 in a bfloat16 model. Under ComfyUI weights may be
    absent until loaded, or narrower because they are cast on use.
    """
    weight = getattr(module, "weight", None)
    if weight is None or weight.dtype.itemsize < 2:
        return dtype
    return torch.promote_types(dtype, weight.dtype)


def modulated_norm(
    x: Tensor, shift: tuple[Tensor, Tensor], scale: tuple[Tensor, Tensor], history: int, eps: float
) -> Tensor:
    """LayerNorm(x)*(1+scale)+shift with float32 statistics; row 0 for the first ``history`` tokens, row 1 after.

    x [B,L,C], rows [B,1,C] -> [B,L,C].
    """
    out = torch.empty_like(x)
    for row, part in _segments(x.shape[1], history):
        normed = F.layer_norm(x[:, part].float(), x.shape[-1:], eps=eps)
        out[:, part] = torch.addcmul(shift[row], normed, 1 + scale[row])
    return out


def gated_residual(x: Tensor, y: Tensor, gate: tuple[Tensor, Tensor], history: int) -> Tensor:
    """x + y*gate, accumulated in float32; rows as in :func:`modulated_norm`."""
    out = torch.empty_like(x)
    for row, part in _segments(x.shape[1], history):
        out[:, part] = torch.addcmul(x[:, part].float(), y[:, part].float(), gate[row])
    return out


def _segments(length: int, history: int) -> list[tuple[int, slice]]:
    segments = [(0, slice(0, history)), (1, slice(history, length))]
    return [(row, part) for row, part in segments if part.stop > part.start]
