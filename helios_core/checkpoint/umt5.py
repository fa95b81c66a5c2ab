"""UMT5 in one file: shards, tokenizer and configuration in the form that core's CLIPLoader type wan reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import HeliosError
from .foreign import describe
from .names import block_number

# The tokenizer as a uint8 tensor, under core's name for it.
SPIECE_TENSOR = "spiece_model"
EMBEDDING = "shared.weight"
# Stored once more under this name in some releases; the embedding is tied.
TIED_EMBEDDING = "encoder.embed_tokens.weight"
# How the names of its Linear layers' weights end.
MATRICES = tuple(f".{name}.weight" for name in ("q", "k", "v", "o", "wi_0", "wi_1", "wo"))
# Far above any UMT5, whose largest has 24.
MOST_LAYERS = 1000
_BLOCK = "encoder.block.0.layer"
_BIAS = f"{_BLOCK}.0.SelfAttention.relative_attention_bias.weight"


def umt5_config(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """The transformers configuration that the tensor shapes of a UMT5 encoder imply.

    Raises:
        HeliosError: another model, or a file without the tokenizer.
    """
    try:
        vocab, dim = shapes[EMBEDDING]
        buckets, heads = shapes[_BIAS]
        inner = shapes[f"{_BLOCK}.0.SelfAttention.q.weight"][0]
        hidden = shapes[f"{_BLOCK}.1.DenseReluDense.wi_1.weight"][0]
        d_kv = inner // heads
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        raise HeliosError(
            f"{path} is {describe(shapes)}, not a UMT5 text encoder; choose Helios's or Wan 2.1's."
        ) from None
    layers = 1 + max(block_number(name, "encoder.block.") for name in shapes)
    # Plain T5 has position biases in its first block only.
    if layers > 1 and _BIAS.replace("block.0", "block.1") not in shapes:
        raise HeliosError(f"{path} is a T5 text encoder, not UMT5; choose Helios's or Wan 2.1's.")
    if SPIECE_TENSOR not in shapes:
        raise HeliosError(
            f"{path} holds no tokenizer ({SPIECE_TENSOR}); make the file from a released folder with "
            "python -m helios_core convert --part text_encoder."
        )
    return {
        "model_type": "umt5",
        "vocab_size": vocab,
        "d_model": dim,
        "d_kv": d_kv,
        "d_ff": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def run_time_type(name: str, dtype: torch.dtype) -> torch.dtype:
    """A tensor's type in a model of type ``dtype``: transformers keeps what overflows in float16 wider."""
    return torch.float32 if dtype == torch.float16 and ".wo." in name else dtype
