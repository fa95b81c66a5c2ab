"""Recognises common files that are not a Helios transformer, so that an error can say what was chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import HeliosError
from .names import find_prefix


class Kind(NamedTuple):
    """What a file is, and the Helios node that loads it, where there is one."""

    what: str
    loader: str = ""


LORA, WAN = Kind("a LoRA", "Helios LoRA Loader"), Kind("a Wan 2.1 model")
_LORA = r".*(\.lora_(A|B|down|up)\b|\.lora\.(down|up)\b|_loras\.(down|up)\b|\.(hada|lokr)_w[12]).*"
_TEXT = r"(language_model\.)?(model\.)?(embed_tokens\.|layers\.\d+\.(self_attn|mlp|input_layernorm)\b).*|lm_head\..*"
# A pattern that one of the tensor names matches: first match wins.
_KINDS = (
    (LORA, _LORA),
    (Kind("a Stable Diffusion checkpoint"), r"(input_blocks|output_blocks|down_blocks|up_blocks)\.\d+\..*"),
    (Kind("a Stable Diffusion 3 model"), r"joint_blocks\.\d+\..*"),
    (Kind("a Flux model"), r"(double_blocks|single_blocks|single_transformer_blocks)\.\d+\..*"),
    (Kind("a language model"), _TEXT),
    (Kind("a T5 text encoder", "Helios Text Encoder Loader"), r"(encoder\.block\.\d+\.layer\.|shared\.weight).*"),
    (Kind("a CLIP text encoder"), r"text_model\.encoder\..*"),
    (Kind("a VAE", "Helios VAE Loader"), r"decoder\.(middle|mid_block|mid|up_blocks|conv_in|conv1)\..*"),
    (WAN, r"head\.(head|modulation).*"),
)
_HELIOS = ("patch_short.", "patch_mid.", "patch_long.")


def recognise(names: Iterable[str]) -> Kind | None:
    """What a file with these tensor names is, where it is a known kind other than a Helios transformer."""
    names = list(names)
    prefix = find_prefix(names)
    bare = [name.removeprefix(prefix) for name in names]
    if any(name.startswith(_HELIOS) for name in bare):
        return LORA if any(re.fullmatch(_LORA, name) for name in bare) else None
    for kind, pattern in _KINDS:
        if any(re.fullmatch(pattern, name) for name in bare):
            return kind
    return WAN if {"condition_embedder.time_proj.weight", "proj_out.weight"} <= set(bare) else None


def describe(names: Iterable[str]) -> str:
    """What a file is, for a message that it is not the right one."""
    kind = recognise(names)
    return "another model" if kind is None else kind.what


def refuse_foreign(names: Iterable[str], path: Path) -> None:
    """Raises HeliosError where ``names`` are those of a known other model."""
    kind = recognise(names)
    if kind is not None:
        remedy = f"load it with {kind.loader}" if kind.loader else "choose a Helios file"
        raise HeliosError(f"{path} is {kind.what}, not a Helios transformer; {remedy}.")
