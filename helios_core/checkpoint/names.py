"""Transformer key names: diffusers' (the official release) to ours and back, without copying tensors.

Ours are Wan 2.1's inside blocks and embeddings. Nothing outside this package knows foreign names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

# (diffusers, ours): prefixes of whole dotted names, first match wins.
_GLOBAL_PAIRS = (
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("norm_out.scale_shift_table", "output.modulation"),
    ("proj_out.", "output.proj."),
)
_BLOCK_PAIRS = (
    ("attn1.to_q.", "self_attn.q."),
    ("attn1.to_k.", "self_attn.k."),
    ("attn1.to_v.", "self_attn.v."),
    ("attn1.to_out.0.", "self_attn.o."),
    ("attn1.", "self_attn."),
    ("attn2.to_q.", "cross_attn.q."),
    ("attn2.to_k.", "cross_attn.k."),
    ("attn2.to_v.", "cross_attn.v."),
    ("attn2.to_out.0.", "cross_attn.o."),
    ("attn2.", "cross_attn."),
    ("norm2.", "norm3."),
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
    ("scale_shift_table", "modulation"),
)
_BLOCK = re.compile(r"(blocks\.\d+\.)(.*)")


def from_diffusers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """A released transformer's state dict under our names; unknown names stay as they are."""
    return {_translate(key, 0, 1): value for key, value in state_dict.items()}


def to_diffusers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """Our state dict under the released names; the inverse of :func:`from_diffusers`."""
    return {_translate(key, 1, 0): value for key, value in state_dict.items()}


def _translate(key: str, source: int, target: int) -> str:
    block = _BLOCK.fullmatch(key)
    prefix, name = block.groups() if block else ("", key)
    for pair in _BLOCK_PAIRS if block else _GLOBAL_PAIRS:
        if name.startswith(pair[source]):
            return prefix + pair[target] + name[len(pair[source]) :]
    return key
