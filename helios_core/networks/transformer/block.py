"""One transformer block; history and noisy tokens each have one row of modulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import CrossAttention, SelfAttention
from .attention_backends import AttentionFunction
from .kernels import TanhGELU, affine_norm, gated_residual, layer_norm, may_overwrite, modulated_norm, segments

FFN_BYTES = 16 << 20


@dataclass(frozen=True)
class BlockContext:
    """What every block of one forward shares.

    ``history_modulation`` [1 or B,6,C] belongs to the leading ``history_length`` tokens,
    ``noisy_modulation`` [B,6,C] to the rest; ``rope`` is :func:`kernels.rotation`'s of the
    table [L,D/2,2]. ``self_attention`` differs from ``attention``, the text's, where processes share the sequence.
    """

    history_length: int
    history_modulation: Tensor
    noisy_modulation: Tensor
    rope: Tensor
    self_attention: AttentionFunction
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
        self.eps, self.ffn_dim = eps, ffn_dim
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
            TanhGELU(),
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
        y = self.self_attn(y, context.rope, history, context.self_attention, queries_from=dropped)
        x, history = x[:, dropped:], history - dropped
        # Not in place: whoever called may still hold the block's input.
        x = gated_residual(x, y, rows[2], history)

        first = history if self.guidance_cross_attn else 0
        y = self.cross_attn(layer_norm(x[:, first:], self.norm3), text_keys_values, context.attention)
        if may_overwrite(y):
            x[:, first:] += y
        else:
            x = torch.cat([x[:, :first], x[:, first:] + y], dim=1)

        if x.device.type != "cpu" or not may_overwrite(x):
            y = self.ffn(modulated_norm(x, rows[3], rows[4], history, self.eps))
            return gated_residual(x, y, rows[5], history, overwrite=True)
        for row, part in segments(x.shape[1], history, self._tokens_at_once(x)):
            y = self.ffn(affine_norm(x[:, part], rows[4][row], rows[3][row], self.eps))
            torch.addcmul(x[:, part], y, rows[5][row], out=x[:, part])
        return x

    def _tokens_at_once(self, x: Tensor) -> int:
        """How many tokens the feed-forward takes on a CPU.

        Its hidden layer is then small enough for the allocator to keep: a larger one is new memory each time, which
        the system clears page by page for as long as the products take. Too few tokens would read the weights too
        often.
        """
        by_memory = FFN_BYTES // (x.shape[0] * self.ffn_dim * x.element_size())
        return max(by_memory, x.shape[-1] // 2)
