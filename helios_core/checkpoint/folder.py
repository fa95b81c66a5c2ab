"""The released folder layout: model_index.json, configurations and sharded safetensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import HeliosError, shortened
from ..networks.settings import read_object
from ..variants import BASE, DISTILLED, MID, VARIANTS
from .gguf import any_header
from .header import TensorEntry
from .mapped import map_file

LONGEST_NAME = 255  # of most file systems
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS_NAME = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
PIPELINE_CLASSES = {variant.pipeline_class for variant in VARIANTS.values()}


@dataclass(frozen=True)
class ReleasedFolder:
    """What a released folder says about itself, read without touching weights.

    ``variant`` is ``base``, ``mid`` or ``distilled``; the three configurations are the raw JSON.
    """

    path: Path
    variant: str
    transformer: dict[str, Any]
    scheduler: dict[str, Any]
    is_cfg_zero_star: bool


def open_folder(path: str | Path) -> ReleasedFolder:
    """Reads a released folder's configuration.

    Raises:
        HeliosError: not a folder, or not a Helios folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise HeliosError(f"model folder {path} does not exist; give the folder that holds model_index.json.")
    index = read_json(path / "model_index.json")
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINE_CLASSES:
        raise HeliosError(
            f"{path} holds the model {shortened(name)}, not Helios; use a folder whose model_index.json names "
            "HeliosPipeline or HeliosPyramidPipeline."
        )
    if name == BASE.pipeline_class:
        variant = BASE
    else:
        variant = DISTILLED if index.get("is_distilled") else MID
    return ReleasedFolder(
        path=path,
        variant=variant.name,
        transformer=read_json(path / "transformer" / "config.json"),
        scheduler=read_json(path / "scheduler" / "scheduler_config.json"),
        is_cfg_zero_star=bool(index.get("is_cfg_zero_star", False)),
    )


def missing_files(path: Path) -> list[str]:
    """The files that a released folder lacks, named from the folder on; nothing is read but indices.

    A tokenizer is there with either of its two files.
    """
    wanted = ["model_index.json", "scheduler/scheduler_config.json"]
    for part, stem in (("transformer", WEIGHTS_NAME), ("text_encoder", TEXT_WEIGHTS_NAME), ("vae", WEIGHTS_NAME)):
        wanted += [f"{part}/config.json", *(f"{part}/{name}" for name in _weight_names(path / part, stem))]
    if not any((path / "tokenizer" / name).is_file() for name in TOKENIZER_FILES):
        wanted.append(f"tokenizer/{TOKENIZER_FILES[0]}")
    return [name for name in wanted if not (path / name).is_file()]


def _weight_names(folder: Path, stem: str) -> list[str]:
    """The shards that a component's index names; the single file where there is no index that can be read."""
    index = f"{stem}.index.json"
    if not (folder / index).is_file():
        return [stem]
    try:
        return sorted({name for name in read_json(folder / index)["weight_map"].values() if _is_file_name(name)})
    except (HeliosError, LookupError, AttributeError, TypeError):
        return [stem]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk, or a HeliosError that names the file."""
    return read_object(path, "download the folder again")


def weight_files(folder: Path, stem: str = WEIGHTS_NAME) -> list[Path]:
    """The safetensors files of a component: the shards its index names, else the single file."""
    index = folder / f"{stem}.index.json"
    if not index.exists():
        return [existing_file(folder / stem)]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HeliosError(f"{index} has no weight_map; download it again.")
    shards = list(weight_map.values())
    foreign = [name for name in shards if not isinstance(name, str) or not _is_file_name(name)]
    if foreign:
        raise HeliosError(f"{index} names {shortened(foreign[0])}, which is no file in its folder; download it again.")
    names = sorted(set(shards))
    return [existing_file(folder / name) for name in names]


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and name.isprintable() and len(name) <= LONGEST_NAME


def existing_file(path: Path) -> Path:
    """``path`` if it is a file, else a HeliosError that names it."""
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name too long, or of characters that no file has
        found = False
    if not found:
        raise HeliosError(f"{path} is missing; download the folder again.")
    return path


def read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """Tensors of all files, memory-mapped.

    Raises:
        HeliosError: a file is truncated, or is no safetensors file.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(map_file(file)[0])
    return tensors


def read_entries(files: Iterable[Path]) -> dict[str, tuple[Path, TensorEntry]]:
    """Which file holds each tensor, and where; reads headers alone.

    Raises:
        HeliosError: a file is truncated, or is no safetensors file.
    """
    return {key: (file, entry) for file in files for key, entry in any_header(file).tensors.items()}
