"""The small transformer, and its forward for training: short text, checkpointed blocks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from helios_core.networks.text import MAX_LENGTH
from helios_core.networks.transformer import HeliosTransformer, PreparedText

from .data import LONG, MID, Batch
from .text import DIM as TEXT_DIM

SMALL_CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 480,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-06,
    "added_kv_proj_dim": None,
    "rope_dim": (12, 10, 10),
    "rope_theta": 10000.0,
    "guidance_cross_attn": True,
    "zero_history_timestep": True,
    "has_multi_term_memory_patch": True,
    "is_amplify_history": False,
    "history_scale_mode": "per_head",
}


def new_transformer(seed: int = 0, **changes: Any) -> HeliosTransformer:
    """Random weights as Wan starts from: residual branches gated near zero, output zero, history patches from the
    patch embedding (the paper's section on memory patches: repeated, divided by 8 and 64)."""
    torch.manual_seed(seed)
    model = HeliosTransformer(**{**SMALL_CONFIG, **changes})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for parameter in (model.time_embedding[0].weight, model.time_embedding[2].weight):
            nn.init.normal_(parameter, std=0.05)
        nn.init.normal_(model.time_projection[1].weight, std=0.02)
        for name, parameter in model.named_parameters():
            if name.endswith("modulation"):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            if name.endswith("modulation") and parameter.shape[1] == 6:
                parameter[:, 2::3] += 0.3
        nn.init.normal_(model.patch_embedding.weight, std=0.5 / math.sqrt(64))
        nn.init.zeros_(model.patch_embedding.bias)
        nn.init.zeros_(model.output.proj.weight)
        memory_patches_from_embedding(model)
    return model


@torch.no_grad()
def memory_patches_from_embedding(model: HeliosTransformer) -> None:
    """Makes a compressed token start as the mean of the tokens it replaces."""
    for name, factor in (("patch_short", 1), ("patch_mid", 2), ("patch_long", 4)):
        patch = getattr(model, name)
        weight = model.patch_embedding.weight.repeat(1, 1, factor, factor, factor)
        patch.weight.copy_(weight / factor**3)
        patch.bias.copy_(model.patch_embedding.bias)


class ShortTextAttention:
    """Attention that knows that the text's padding rows are all equal.

    512 text rows of which 20 are not padding cost as much as 20: the equal keys are one key whose weight in the
    softmax is their number, which is what adding its logarithm does. Exact, not an approximation.
    """

    def __init__(self, text: PreparedText, lengths: Tensor):
        # By their memory: who shards or streams blocks hands them other tensors of the same.
        self._keys = {keys.data_ptr() for keys, _ in text.keys_values}
        rows = text.keys_values[0][0].shape[1]
        is_padding = torch.arange(rows, device=lengths.device) >= lengths[:, None]
        share = (MAX_LENGTH - lengths) / (rows - lengths)
        self._bias = torch.where(is_padding, share.log()[:, None], torch.zeros_like(share)[:, None])[:, None, None]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        bias = self._bias.to(q.dtype) if k.data_ptr() in self._keys else None
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)


def velocity(
    model: HeliosTransformer,
    latents: Tensor,
    timestep: Tensor,
    embeddings: Tensor,
    batch: Batch,
    checkpointed: bool = False,
) -> Tensor:
    """The network's velocity for ``latents`` [B,16,9,h,w] with ``embeddings`` [B,rows,D] of the batch's captions.

    It is computed in the model's type on the model's device, and returned in those of ``latents``.
    """
    lengths = (embeddings != 0).any(-1).sum(1)
    at = model.patch_embedding.weight
    rows = embeddings[:, : int(lengths.max()) + 1].to(at)
    if checkpointed and torch.is_grad_enabled():
        # So that whoever shards or streams the blocks sees where the text's part of the backward pass ends.
        rows = rows.detach().requires_grad_()
    text = model.prepare_text(rows)
    long, mid, last = (part.to(at) for part in batch.history.split([LONG, MID, 1], dim=2))
    history = model.prepare_history(torch.cat([batch.anchor.to(at), last], dim=2), mid, long)

    def run_block(index: int, x: Tensor, *inputs: Any) -> Tensor:
        if not checkpointed:
            return model.run_block(index, x, *inputs)
        # A frozen model's first block would otherwise work in place, under adapters whose results are recorded.
        x = x if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled())
        return checkpoint(model.run_block, index, x, *inputs, use_reentrant=False)

    attention = ShortTextAttention(text, lengths.to(at.device))
    predicted = model(
        latents.to(at), timestep.to(at.device), text, history=history, attention=attention, run_block=run_block
    )
    return predicted.to(latents)
