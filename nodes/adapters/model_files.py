"""Which model names the loaders offer, and where each one lies on disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths

from ...helios_core.checkpoint.folder import PIPELINE_CLASSES
from ...helios_core.commands.embedded import TINY_NAMES, TINY_PREFIX, embedded
from ...helios_core.commands.tiny import write_tiny
from ...helios_core.errors import HeliosError, reason, shortened
from ...helios_core.networks.settings import read_object
from ...helios_core.variants import DEFAULT, VARIANTS
from .sockets import check_text

DIFFUSERS = "diffusers"
SINGLE_FILES = (".safetensors", ".sft")
TRANSFORMERS = "diffusion_models"
# Core lists no GGUF files: the same folders under a name of ours, for these alone.
PACKED = "helios_gguf"
folder_paths.folder_names_and_paths[PACKED] = (folder_paths.folder_names_and_paths[TRANSFORMERS][0], {".gguf"})
# Bytes: a file system's 255, less what films that are being made have behind it.
LONGEST_PREFIX = 200
# The fastest first.
RELEASED = {variant.folder: variant.repository for variant in reversed(VARIANTS.values())}

log = logging.getLogger(__name__)


def choices(kind: str) -> list[str]:
    """Helios folders under models/diffusers, files under models/``kind``, models of the pack, released models.

    Released names that are not installed stay choosable so that a shared workflow opens intact; running one is
    refused with what to download.
    """
    return list(dict.fromkeys([*installed_folders(), *single_files(kind), *small_folders(), *TINY_NAMES, *RELEASED]))


def default_choice(kind: str) -> str:
    """A real model where one is installed (Distilled first), else helios-tiny."""
    installed = [name for name in installed_folders() if name not in TINY_NAMES]
    preferred = [name for name in RELEASED if name in installed]
    named = [name for name in single_files(kind) if "helios" in name.lower()]
    return (preferred or installed or named or [TINY_PREFIX + DEFAULT.name])[0]


def single_files(kind: str) -> list[str]:
    """The safetensors files under models/``kind``, as core names them, and GGUF files that may be transformers."""
    names = [name for name in folder_paths.get_filename_list(kind) if name.lower().endswith(SINGLE_FILES)]
    return names + (folder_paths.get_filename_list(PACKED) if kind == TRANSFORMERS else [])


def installed_folders() -> dict[str, Path]:
    """Helios folders under models/diffusers by name; the first of equal names wins, as in core."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(DIFFUSERS)):
        if not root.is_dir():
            continue
        for folder in sorted(root.iterdir()):
            if folder.name not in found and _is_helios(folder):
                found[folder.name] = folder
    return found


def small_folders() -> dict[str, Path]:
    """The trained models that come with the pack, by name."""
    found = [embedded(variant) for variant in VARIANTS]
    return {model.name: model.folder for model in found if model.folder is not None}


def model_folders() -> dict[str, Path]:
    """Every Helios folder that is there, by name; one of the user's wins over one of the pack."""
    return {**small_folders(), **installed_folders()}


def check_installed(name: str | None, kind: str) -> str | None:
    """Why ``name`` cannot be loaded, in one sentence; None where it can."""
    if not isinstance(name, str):
        return f"model {shortened(name)} is not a name; choose one from the list."
    if name in TINY_NAMES or name in model_folders() or name in single_files(kind):
        return None
    if name in RELEASED:
        return (
            f"{name} is not installed: download https://huggingface.co/{RELEASED[name]} into "
            f"models/diffusers/{name} (the button in Helios Load Model does it), or choose {TINY_PREFIX}{DEFAULT.name} "
            "to try the workflow with random weights."
        )
    return (
        f"model {shortened(name)} is neither a Helios folder under models/diffusers nor a safetensors or GGUF file "
        f"under models/{kind}; choose one from the list."
    )


def resolve(name: str, kind: str) -> Path:
    """The folder or file behind a choice; helios-tiny is made on first use.

    Raises:
        HeliosError: not installed, or not a Helios folder.
    """
    problem = check_installed(name, kind)
    if problem:
        raise HeliosError(problem)
    if name in single_files(kind):
        return Path(folder_paths.get_full_path_or_raise(kind, name))
    folder = model_folders().get(name)
    if folder is None:
        folder = write_tiny(diffusers_folder() / name, name.removeprefix(TINY_PREFIX))
    if name in TINY_NAMES:
        log.warning("%s has random weights: it shows that the workflow runs, and makes abstract noise.", name)
    return folder


def diffusers_folder() -> Path:
    """Where new folders are written."""
    return Path(folder_paths.get_folder_paths(DIFFUSERS)[0])


def _is_helios(folder: Path) -> bool:
    index = folder / "model_index.json"
    try:
        return read_object(index).get("_class_name") in PIPELINE_CLASSES
    except (HeliosError, TypeError):
        return False


def check_prefix(prefix: str) -> None:
    """Refuses a prefix that leaves the output folder, or whose name is too long."""
    check_text("filename_prefix", prefix)
    output = folder_paths.get_output_directory()
    normal = os.path.normpath(prefix)
    inside = folder_paths.is_within_directory(output, str(Path(output) / normal))
    if not inside or Path(normal).name in ("", ".", ".."):
        raise HeliosError(
            f"filename_prefix={shortened(prefix)} is not a name within the output folder; use one like video/Helios."
        )
    # What core puts in for %width% and the like is known when the name is made.
    if "%" not in prefix:
        _check_name(prefix, Path(normal).name)


def _check_name(prefix: str, name: str) -> None:
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_PREFIX:
        raise HeliosError(
            f"filename_prefix={shortened(prefix)} has a name of more than {LONGEST_PREFIX} bytes; use a shorter one."
        )


def save_path(prefix: str, width: int = 0, height: int = 0) -> tuple[str, str, int, str]:
    """Folder, name, next number and subfolder of a prefix, as core's Save nodes find them.

    Raises:
        HeliosError: a folder that cannot be made, or a name that is too long.
    """
    try:
        path = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory(), width, height)[:4]
    except (OSError, ValueError) as error:
        raise HeliosError(
            f"filename_prefix={shortened(prefix)} cannot be used ({reason(error)}); choose a name and a folder "
            "that can be written."
        ) from error
    _check_name(prefix, path[1])
    return path
