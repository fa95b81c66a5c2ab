"""helios-tiny: a complete Helios checkpoint of random weights, 5 MB, in the released folder layout.

It lets tests and demos run every code path on a CPU without a download. The weights are random but not
unstructured: convolutions are low-pass, and the transformer roughly predicts the part of its input that its
neighbours in space and time do not share. So the picture is a slow drift of soft colours instead of static.
It shows nothing that a prompt asks for.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..errors import HeliosError, shortened
from ..variants import BASE, DEFAULT, DISTILLED, VARIANTS
from .tiny_tokenizer import as_json, tokenizer_files
from .tiny_weights import (
    TEXT_CONFIG,
    TRANSFORMER_CONFIG,
    VAE_CONFIG,
    text_encoder_tensors,
    transformer_tensors,
    vae_tensors,
)

FORMAT = 1  # raise it when the bytes that write_tiny produces for a seed change
README = """helios-tiny: random weights for tests and demos; it makes abstract noise, not video.

The layout, file names and tensor names are those of a released Helios checkpoint, the sizes are not.
The weights were drawn by helios_core.tiny and never trained: do not judge Helios by them.
"""


def _model_index(variant: str, seed: int) -> dict[str, Any]:
    released = VARIANTS[variant]
    index: dict[str, Any] = {
        "_class_name": released.pipeline_class,
        "_diffusers_version": "0.42.1",
        "_helios_tiny": {"format": FORMAT, "variant": variant, "seed": seed},
    }
    if released != BASE:
        index |= {"is_cfg_zero_star": released.zero_star, "is_distilled": released == DISTILLED}
    return index | {
        "scheduler": ["diffusers", released.scheduler["_class_name"]],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # transformers refuses a file whose metadata does not name the framework.
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def _save_sharded(tensors: dict[str, Tensor], folder: Path) -> None:
    """Two shards, split at the middle of the name list, with the index that the released folder has."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors"
        _save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _dump(index, folder / "diffusion_pytorch_model.safetensors.index.json")


def _dump(value: dict[str, Any], path: Path) -> None:
    path.write_bytes(as_json(value))


def _write(folder: Path, variant: str, seed: int) -> None:
    for part in ("transformer", "scheduler", "vae", "text_encoder", "tokenizer"):
        (folder / part).mkdir(parents=True)
    (folder / "README.txt").write_text(README, encoding="utf-8", newline="\n")
    _dump(_model_index(variant, seed), folder / "model_index.json")
    _dump(dict(VARIANTS[variant].scheduler), folder / "scheduler" / "scheduler_config.json")

    for name, content in tokenizer_files(TEXT_CONFIG["vocab_size"]).items():
        (folder / "tokenizer" / name).write_bytes(content)

    _dump(TRANSFORMER_CONFIG, folder / "transformer" / "config.json")
    transformer_seed = 8 * seed + 3 + list(VARIANTS).index(variant)
    _save_sharded(transformer_tensors(transformer_seed), folder / "transformer")
    _dump(VAE_CONFIG, folder / "vae" / "config.json")
    _save(vae_tensors(8 * seed + 2), folder / "vae" / "diffusion_pytorch_model.safetensors")
    _dump(TEXT_CONFIG, folder / "text_encoder" / "config.json")
    _save(text_encoder_tensors(8 * seed + 1), folder / "text_encoder" / "model.safetensors")


def _marker(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_helios_tiny")
    except (OSError, ValueError, AttributeError):
        return None


def is_tiny(folder: Path | str) -> bool:
    """Whether this pipeline folder was written by write_tiny."""
    return _marker(Path(folder)) is not None


def write_tiny(folder: Path | str, variant: str = DEFAULT.name, seed: int = 0) -> Path:
    """Write helios-tiny to `folder` unless it is there already, and return the folder.

    The same variant and seed give the same bytes. The folder appears complete or not at all.
    HeliosError: an unknown variant, or a `folder` that holds anything but this variant and seed.
    """
    folder = Path(folder)
    if variant not in VARIANTS:
        raise HeliosError(f"variant={shortened(variant)} is unknown: choose one of {', '.join(VARIANTS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _existing(folder, variant, seed)
    unfinished = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        _write(unfinished, variant, seed)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _existing(folder: Path, variant: str, seed: int) -> Path:
    wanted = {"format": FORMAT, "variant": variant, "seed": seed}
    found = _marker(folder)
    if found != wanted:
        what = "is not a helios-tiny checkpoint" if found is None else f"holds another helios-tiny ({found})"
        raise HeliosError(f"folder {folder} {what}: delete it or choose a folder that does not exist yet.")
    return folder
