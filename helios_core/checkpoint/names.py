"""Transformer key names: every known layout to ours, and ours to the release's, without copying tensors.

Ours are Wan 2.1's inside blocks and embeddings. Nothing outside this package knows foreign names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

# (diffusers, ours): prefixes of whole dotted names, first match wins. The mixed names of ComfyUI PR 12765
# need no table of their own: each of its names is one or the other.
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

# Core's savers, core's own loaders, diffusers' pipelines, PEFT, DDP and torch.compile.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "base_model.model.", "module.", "_orig_mod.")
# What a whole checkpoint holds beside the diffusion model; it belongs to other loaders.
_OTHER_PARTS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.", "clip_vision.")


def from_diffusers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """A released transformer's state dict under our names; unknown names stay as they are."""
    return {_translate(key, 0, 1): value for key, value in state_dict.items()}


def to_diffusers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """Our state dict under the released names; the inverse of :func:`from_diffusers`."""
    return {_translate(key, 1, 0): value for key, value in state_dict.items()}


def from_any_layout(state_dict: Mapping[str, T]) -> dict[str, T]:
    """A transformer's tensors under our names, from any known layout with or without a prefix.

    Names that nobody knows stay as they are; the other parts of a whole checkpoint are left out.
    """
    prefix = find_prefix(state_dict)
    kept = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix) or not key.startswith(_OTHER_PARTS)
    }
    return from_diffusers(kept)


def find_prefix(names: Iterable[str]) -> str:
    """The longest chain of known prefixes that some name has, else an empty string."""
    names = list(names)
    found = ""
    while True:
        longer = next((p for p in PREFIXES if any(name.startswith(found + p) for name in names)), None)
        if longer is None:
            return found
        found += longer


def native_name(name: str) -> str:
    """One tensor name of any layout, with or without a prefix, under our names."""
    return _translate(name.removeprefix(find_prefix([name])), 0, 1)


def underscored_names(modules: Iterable[str]) -> dict[str, str]:
    """Our module names by the spellings in which LoRA files replace dots with underscores.

    ``blocks_0_self_attn_q``, ``blocks_0_attn1_to_q`` and mixtures such as ``blocks_0_ffn_net_0_proj``.
    """
    table: dict[str, str] = {}
    for module in modules:
        for spelling in (module, _translate(module + ".", 1, 0).removesuffix(".")):
            table[spelling.replace(".", "_")] = module
    return table


def _translate(key: str, source: int, target: int) -> str:
    block = _BLOCK.fullmatch(key)
    prefix, name = block.groups() if block else ("", key)
    for pair in _BLOCK_PAIRS if block else _GLOBAL_PAIRS:
        if name.startswith(pair[source]):
            return prefix + pair[target] + name[len(pair[source]) :]
    return key


def block_number(name: str, prefix: str) -> int:
    """The number after ``prefix`` in a tensor's name; -1 where there is none, or one that no model counts up to."""
    number = name.removeprefix(prefix).partition(".")[0]
    return int(number) if name.startswith(prefix) and re.fullmatch(r"[0-9]{1,4}", number) else -1
