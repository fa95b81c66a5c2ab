"""A transformer on disk, whatever its layout: what it is, and its tensors under our names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import HeliosError, shortened
from ..networks.settings import parse_object
from ..networks.transformer import TransformerConfig
from ..variants import VARIANTS
from .folder import open_folder, read_entries, read_tensors, weight_files
from .foreign import refuse_foreign
from .gguf import any_header
from .header import Header, TensorEntry
from .names import block_number, from_any_layout
from .quantised import without_companions

VARIANT_KEY, CONFIG_KEY, SCHEDULER_KEY = "helios.variant", "helios.config", "helios.scheduler"
# Core's ModelSave writes tensors only: this one carries the metadata above through it.
INFO_TENSOR = "helios_info"
RELEASED_DIM, RELEASED_HEAD_DIM = 5120, 128


@dataclass(frozen=True)
class TransformerSource:
    """What is known of a transformer before its tensors are read.

    ``scheduler`` is the raw scheduler configuration, the variant's released one where a file carries none.
    """

    path: Path
    files: tuple[Path, ...]
    variant: str
    config: TransformerConfig
    scheduler: dict[str, Any]
    is_cfg_zero_star: bool
    metadata: dict[str, str]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors under our names, memory-mapped; quantised layers with their scales."""
        return transformer_tensors(read_tensors(list(self.files)))

    def entries(self) -> dict[str, tuple[Path, TensorEntry]]:
        """Which file holds each tensor, and where, under our names; reads headers alone."""
        found = read_entries(self.files)
        return from_any_layout({key: value for key, value in found.items() if not _is_info(key)})


def open_transformer(path: str | Path, variant: str | None = None) -> TransformerSource:
    """Reads the configuration of a released folder or of a single safetensors or GGUF file; touches no weights.

    ``variant`` is needed where the file does not say which one it is, and must agree where it does.

    Raises:
        HeliosError: absent, damaged or foreign; or the variant is unknown or contradicts the file.
    """
    path = Path(path)
    if variant is not None and variant not in VARIANTS:
        raise HeliosError(f"variant={shortened(variant)} is unknown; use one of {', '.join(VARIANTS)}.")
    source = _from_file(path, variant) if path.is_file() else _from_folder(path)
    if variant is not None and variant != source.variant:
        raise HeliosError(f"variant={variant!r} contradicts {path}, which is Helios {source.variant}; use auto.")
    return source


def transformer_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under our names, without the tensor that carries metadata."""
    return from_any_layout({key: value for key, value in state.items() if not _is_info(key)})


def info_tensor(variant: str, config: TransformerConfig) -> Tensor:
    """What core's ModelSave is to write beside the weights, so that the file knows its variant."""
    return encode_bytes(json.dumps({VARIANT_KEY: variant, CONFIG_KEY: json.dumps(config.to_dict())}).encode())


def encode_bytes(content: bytes) -> Tensor:
    """Bytes as a uint8 tensor, which is how safetensors files carry them."""
    import torch

    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _from_folder(path: Path) -> TransformerSource:
    folder = open_folder(path)
    files = weight_files(folder.path / "transformer")
    return TransformerSource(
        path=folder.path,
        files=tuple(files),
        variant=folder.variant,
        config=TransformerConfig.from_dict(folder.transformer, f"{folder.path / 'transformer' / 'config.json'}"),
        scheduler=folder.scheduler,
        is_cfg_zero_star=folder.is_cfg_zero_star,
        metadata={},
    )


def _from_file(path: Path, variant: str | None) -> TransformerSource:
    header = any_header(path)
    refuse_foreign(header.tensors, path)
    metadata = header.metadata | _read_info(header)
    stated = metadata.get(VARIANT_KEY)
    if stated is not None and stated not in VARIANTS:
        raise HeliosError(f"{path} says it is Helios {shortened(stated)}, which is unknown; download it again.")
    if (stated or variant) is None:
        raise HeliosError(
            f"{path} does not say whether it is Helios base, mid or distilled; set the input variant to the right one."
        )
    shapes = {key: entry.shape for key, entry in header.tensors.items() if not _is_info(key)}
    known = stated or variant or ""
    return TransformerSource(
        path=path,
        files=(path,),
        variant=known,
        config=_stated_config(metadata, path) or derive_config(from_any_layout(shapes), path),
        scheduler=_json_of(metadata, SCHEDULER_KEY, path) or dict(VARIANTS[known].scheduler),
        is_cfg_zero_star=VARIANTS[known].zero_star,
        metadata=metadata,
    )


def _is_info(key: str) -> bool:
    return key.rsplit(".", 1)[-1] == INFO_TENSOR


def _read_info(header: Header) -> dict[str, str]:
    for key, entry in header.tensors.items():
        if _is_info(key):
            with header.path.open("rb") as file:
                file.seek(entry.start)
                content = file.read(entry.end - entry.start)
            found = parse_object(content, f"{header.path}: its tensor {shortened(key)}", "save or download it again")
            return {name: value for name, value in found.items() if isinstance(value, str)}
    return {}


def _json_of(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any] | None:
    return parse_object(metadata[key], f"{path}: its metadata {key}") if key in metadata else None


def _stated_config(metadata: Mapping[str, str], path: Path) -> TransformerConfig | None:
    content = _json_of(metadata, CONFIG_KEY, path)
    return None if content is None else TransformerConfig.from_dict(content, f"{path}: its metadata {CONFIG_KEY}")


def derive_config(shapes: Mapping[str, tuple[int, ...]], path: Path) -> TransformerConfig:
    """The configuration that tensor shapes (our names) imply, for a file of the released width.

    The number of heads does not show in shapes, so only the released width is accepted.

    Raises:
        HeliosError: no Helios transformer, or another width.
    """
    shapes = without_companions(shapes)
    try:
        dim, channels, *patch = shapes["patch_embedding.weight"]
        depth, height, width = patch
        text_dim = shapes["text_embedding.0.weight"][1]
        freq_dim = shapes["time_embedding.0.weight"][1]
        ffn_dim = shapes["blocks.0.ffn.0.bias"][0]
        out_features = shapes["output.proj.bias"][0]
    except (KeyError, ValueError, IndexError) as error:
        what = error.args[0] if isinstance(error, KeyError) else "a matrix"
        raise HeliosError(
            f"{path} is not a Helios transformer: {what} is missing or misshaped among its "
            f"{len(shapes)} tensors; choose a Helios file."
        ) from None
    if dim != RELEASED_DIM:
        raise HeliosError(
            f"{path} has width {dim} and no {CONFIG_KEY} in its metadata, so its number of heads is unknown; "
            f"use a file of the released width {RELEASED_DIM}, or one that helios_core convert wrote."
        )
    scale = shapes.get("blocks.0.self_attn.history_key_scale")
    return TransformerConfig(
        patch_size=(depth, height, width),
        num_attention_heads=dim // RELEASED_HEAD_DIM,
        attention_head_dim=RELEASED_HEAD_DIM,
        in_channels=channels,
        out_channels=out_features // max(1, math.prod(patch)),
        text_dim=text_dim,
        freq_dim=freq_dim,
        ffn_dim=ffn_dim,
        num_layers=_layers(shapes),
        cross_attn_norm="blocks.0.norm3.weight" in shapes,
        has_multi_term_memory_patch="patch_short.weight" in shapes,
        is_amplify_history=scale is not None,
        history_scale_mode="scalar" if scale == (1,) else "per_head",
    )


def _layers(names: Iterable[str]) -> int:
    return 1 + max(block_number(name, "blocks.") for name in names)
