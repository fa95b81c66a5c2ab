"""Names of the Wan 2.1 VAE's tensors: diffusers' AutoencoderKLWan <-> native Wan.

Native names are what ComfyUI's VAELoader detects and what `helios_core.networks.vae` uses. Shapes are the same
on both sides, so only the keys change.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import HeliosError, shortened
from .foreign import describe

T = TypeVar("T")
STATE_DICT = "The VAE state dict"

_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_NORMS = ("norm", "norm1", "norm2", "norm_out")


@dataclass(frozen=True)
class _Name:
    diffusers: str
    native: str
    required: bool = True


MOST_DIGITS = 2
NATIVE_SIGN = "decoder.middle.0.residual.0.gamma"
DIFFUSERS_SIGN = "decoder.mid_block.resnets.0.norm1.gamma"
_PREFIXES = ("first_stage_model.", "vae.")


def native_vae(state_dict: Mapping[str, T], source: Path | str) -> dict[str, T]:
    """A Wan 2.1 VAE in either naming, with or without a checkpoint's prefix, under native names.

    Raises:
        HeliosError: ``source`` holds no Wan 2.1 VAE.
    """
    for prefix in _PREFIXES:
        if f"{prefix}{NATIVE_SIGN}" in state_dict or f"{prefix}{DIFFUSERS_SIGN}" in state_dict:
            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if DIFFUSERS_SIGN in state_dict:
        return vae_from_diffusers(state_dict, source)
    if NATIVE_SIGN not in state_dict:
        raise HeliosError(f"{source} is {describe(state_dict)}, not a Wan 2.1 VAE; choose the VAE that Helios ships.")
    return vae_from_diffusers(vae_to_diffusers(state_dict, source), source)


def vae_from_diffusers(state_dict: Mapping[str, T], source: Path | str = STATE_DICT) -> dict[str, T]:
    """Rename AutoencoderKLWan tensors to native Wan names (the tensors themselves, no copies).

    Any base_dim, dim_mult, num_res_blocks and temporal layout. Raises HeliosError for unknown or
    missing names.
    """
    blocks = [_indices(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", name) for name in state_dict]
    levels = 1 + max((found[0] for found in blocks if found), default=0)
    res_blocks = max((found[1] for found in blocks if found), default=0)
    table = {name.diffusers: name for name in _names(levels, res_blocks)}
    _check(state_dict, {key: name.required for key, name in table.items()}, "AutoencoderKLWan", source)
    return {table[key].native: tensor for key, tensor in state_dict.items()}


def vae_to_diffusers(state_dict: Mapping[str, T], source: Path | str = STATE_DICT) -> dict[str, T]:
    """Rename native Wan 2.1 VAE tensors to AutoencoderKLWan names: the inverse of `vae_from_diffusers`.

    Raises HeliosError for unknown or missing names.
    """
    layers = [_indices(r"decoder\.upsamples\.(\d+)\.", name) for name in state_dict]
    resamples = [_indices(r"decoder\.upsamples\.(\d+)\.resample\.", name) for name in state_dict]
    count = 1 + max((found[0] for found in layers if found), default=0)
    level_length = 1 + min((found[0] for found in resamples if found), default=count)
    res_blocks = max(level_length - 2, 0)
    table = {name.native: name for name in _names((count + 1) // (res_blocks + 2), res_blocks)}
    _check(state_dict, {key: name.required for key, name in table.items()}, "native Wan 2.1 VAE", source)
    return {table[key].diffusers: tensor for key, tensor in state_dict.items()}


def _indices(pattern: str, name: str) -> tuple[int, ...] | None:
    match = re.match(pattern, name)
    # No VAE has a number of more digits; a damaged name would be counted up to.
    groups = match.groups() if match else ()
    return tuple(map(int, groups)) if groups and all(len(group) <= MOST_DIGITS for group in groups) else None


def _names(levels: int, res_blocks: int) -> Iterator[_Name]:
    """Every tensor of a VAE with `levels` resolutions and `res_blocks` residual blocks per encoder level."""
    yield from _layer("quant_conv", "conv1")
    yield from _layer("post_quant_conv", "conv2")
    for half in ("encoder", "decoder"):
        yield from _layer(f"{half}.conv_in", f"{half}.conv1")
        yield from _layer(f"{half}.norm_out", f"{half}.head.0")
        yield from _layer(f"{half}.conv_out", f"{half}.head.2")
        yield from _residual(f"{half}.mid_block.resnets.0", f"{half}.middle.0")
        for layer in ("norm", "to_qkv", "proj"):
            yield from _layer(f"{half}.mid_block.attentions.0.{layer}", f"{half}.middle.1.{layer}")
        yield from _residual(f"{half}.mid_block.resnets.1", f"{half}.middle.2")

    for level in range(levels):
        last = level == levels - 1
        for block in range(res_blocks):
            index = level * (res_blocks + 1) + block
            yield from _residual(f"encoder.down_blocks.{index}", f"encoder.downsamples.{index}")
        if not last:
            index = level * (res_blocks + 1) + res_blocks
            yield from _resample(f"encoder.down_blocks.{index}", f"encoder.downsamples.{index}")

        first = level * (res_blocks + 2)
        for block in range(res_blocks + 1):
            yield from _residual(f"decoder.up_blocks.{level}.resnets.{block}", f"decoder.upsamples.{first + block}")
        if not last:
            native = f"decoder.upsamples.{first + res_blocks + 1}"
            yield from _resample(f"decoder.up_blocks.{level}.upsamplers.0", native)


def _residual(diffusers: str, native: str) -> Iterator[_Name]:
    for ours, theirs in _RESIDUAL.items():
        yield from _layer(f"{diffusers}.{ours}", f"{native}.{theirs}")
    yield from _layer(f"{diffusers}.conv_shortcut", f"{native}.shortcut", required=False)


def _resample(diffusers: str, native: str) -> Iterator[_Name]:
    yield from _layer(f"{diffusers}.resample.1", f"{native}.resample.1")
    yield from _layer(f"{diffusers}.time_conv", f"{native}.time_conv", required=False)


def _layer(diffusers: str, native: str, required: bool = True) -> Iterator[_Name]:
    is_norm = diffusers.rsplit(".", 1)[-1] in _NORMS
    for parameter in ("gamma",) if is_norm else ("weight", "bias"):
        yield _Name(f"{diffusers}.{parameter}", f"{native}.{parameter}", required)


def _check(found: Iterable[str], known: Mapping[str, bool], layout: str, source: Path | str) -> None:
    found = set(found)
    for problem, names in (
        ("does not know", found - known.keys()),
        ("is missing", {name for name, required in known.items() if required} - found),
    ):
        if names:
            examples = ", ".join(shortened(name)[1:-1] for name in sorted(names)[:3])
            raise HeliosError(
                f"{source} has {len(found)} tensors and the {layout} layout {problem} {len(names)} "
                f"tensor names ({examples}{', ...' if len(names) > 3 else ''}): use the Wan 2.1 VAE."
            )
