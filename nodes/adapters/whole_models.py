"""Models loaded whole, from one folder: what a choice stands for, what it lacks, and the size it is made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...helios_core.checkpoint.folder import missing_files, open_folder
from ...helios_core.commands.embedded import (
    SMALL_PREFIX,
    SMALL_SIZE,
    TINY_NAMES,
    TINY_PREFIX,
    TINY_SIZE,
)
from ...helios_core.errors import HeliosError, shortened
from ...helios_core.variants import DEFAULT, RELEASED_SIZE, VARIANTS
from .model_files import (
    RELEASED,
    diffusers_folder,
    installed_folders,
    model_folders,
    small_folders,
)

# "distilled" stands for the best Helios Distilled that is there.
BEST = tuple(reversed(VARIANTS))
DEFAULT_CHOICE = DEFAULT.name
NAMED = 3  # missing files that a sentence names


@dataclass(frozen=True)
class WholeModel:
    """What a choice loads.

    Attributes:
        name: of the folder; of helios-tiny also where it is not written yet.
        variant: None where the folder does not say.
        size: width and height that the model is made for.
        missing: files that the folder lacks; ``("model_index.json",)`` and more where there is no folder.
        wanted: the released folder that could be downloaded to run this choice, or to run it better; None where
            the choice is that of a folder that is whole.
    """

    name: str
    variant: str | None
    size: tuple[int, int]
    missing: tuple[str, ...] = ()
    wanted: str | None = None


def choices() -> list[str]:
    """Best of each variant, installed folders, models of the pack, released names."""
    return list(dict.fromkeys([*BEST, *installed_folders(), *small_folders(), *TINY_NAMES, *RELEASED]))


def model_of(choice: str) -> WholeModel:
    """What a choice loads now.

    Raises:
        HeliosError: not a choice.
    """
    if choice in VARIANTS:
        return _best(choice)
    folder = model_folders().get(choice)
    if folder is not None:
        missing = tuple(missing_files(folder))
        wanted = choice if choice in RELEASED else None
        return WholeModel(choice, _variant_of(folder), _size_of(choice), missing, wanted)
    if choice in TINY_NAMES:
        return WholeModel(choice, choice.removeprefix(TINY_PREFIX), TINY_SIZE)
    if choice in RELEASED:
        return WholeModel(choice, _released_variant(choice), RELEASED_SIZE, tuple(lacking(choice)), choice)
    raise HeliosError(
        f"model {shortened(choice)} is neither a variant nor a Helios folder under models/diffusers; choose one from "
        "the list."
    )


def check_whole(choice: object) -> str | None:
    """Why a choice cannot be loaded, in one sentence; None where it can."""
    if not isinstance(choice, str):
        return f"model {shortened(choice)} is not a name; choose one from the list."
    try:
        model = model_of(choice)
    except HeliosError as error:
        return str(error)
    if not model.missing:
        return None
    remedy = f"choose {model.variant or DEFAULT.name}, which takes what is there"
    if model.wanted is not None:
        remedy = f"press Download in the node, or {remedy}"
    if model.name not in model_folders():
        return f"{model.name} is not installed; {remedy}."
    more = len(model.missing) - NAMED
    named = ", ".join(model.missing[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{model.name} lacks {named}; {remedy}."


def lacking(released: str) -> list[str]:
    """The files that a released folder still lacks; one that is not there lacks at least its ``model_index.json``."""
    return missing_files(model_folders().get(released, diffusers_folder() / released))


def _best(variant: str) -> WholeModel:
    """The released folder, else another one of this variant, else the pack's trained model, else helios-tiny."""
    released = VARIANTS[variant].folder
    own = [name for name in installed_folders() if name != released and name not in TINY_NAMES]
    folders = model_folders()
    for name in (released, *own, SMALL_PREFIX + variant):
        folder = folders.get(name)
        if folder is not None and not missing_files(folder) and _variant_of(folder) == variant:
            return WholeModel(name, variant, _size_of(name), wanted=released)
    return WholeModel(TINY_PREFIX + variant, variant, TINY_SIZE, wanted=released)


def _size_of(name: str) -> tuple[int, int]:
    if name in TINY_NAMES:
        return TINY_SIZE
    return SMALL_SIZE if name in small_folders() and name not in installed_folders() else RELEASED_SIZE


def _released_variant(folder: str) -> str:
    return next(name for name, variant in VARIANTS.items() if variant.folder == folder)


def _variant_of(folder: Path) -> str | None:
    try:
        return open_folder(folder).variant
    except HeliosError:
        return None
