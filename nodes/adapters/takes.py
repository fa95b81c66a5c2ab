"""Takes under ComfyUI: where the store lies, the inputs that their nodes share, and what a manifest says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io

from ...helios_core.errors import HeliosError, shortened
from ...helios_core.take.history import History
from ...helios_core.take.seed_changes import SeedChanges, parse_seed_changes
from ...helios_core.take.store import DEFAULT_MAX_BYTES, FOLDER_NAME, ChunkStore
from .sockets import check_text
from .warnings import warn

LIMIT_VARIABLE = "HELIOS_STORE_GIB"


def output_store() -> ChunkStore:
    """The store in ComfyUI's output folder, where takes lie and where the space is.

    The environment variable HELIOS_STORE_GIB replaces its size limit of 32 GiB.
    """
    limit = os.environ.get(LIMIT_VARIABLE)
    try:
        max_bytes = DEFAULT_MAX_BYTES if limit is None else int(float(limit) * 2**30)
    except (ValueError, OverflowError):
        raise HeliosError(
            f"{LIMIT_VARIABLE}={shortened(limit)} is not a number; set it to gibibytes, like 32."
        ) from None
    output = folder_paths.get_output_directory()
    folder = Path(output) / FOLDER_NAME
    if not folder_paths.is_within_directory(output, str(folder / "takes")):
        raise HeliosError(f"{folder} leads out of the output folder by a link; remove the link, or link all of output.")
    return ChunkStore(folder, max_bytes)


def check_seed_changes(text: Any) -> bool | str:
    """For ``validate_inputs``: True, or what is wrong with a text of seed changes."""
    try:
        check_text("seed_changes", text or "")
        parse_seed_changes(text or "")
    except HeliosError as error:
        return str(error)
    return True


def warn_of_late_changes(changes: SeedChanges, history: History, num_chunks: int) -> None:
    """Seed changes that wait for a longer film do nothing in this one."""
    end = history.chunk + num_chunks
    late = [str(chunk) for chunk, _ in changes if chunk >= end]
    if late:
        warn(f"seed_changes: this film ends before chunk {', '.join(late)}, which changes nothing.")


def check_batch(size: int) -> None:
    """Refuses to render several videos into one file."""
    if size != 1:
        raise HeliosError(f"history has a batch of {size}; a film is one video, set batch_size to 1.")


def take_input() -> io.String.Input:
    return io.String.Input(
        "take",
        default="",
        optional=True,
        advanced=True,
        tooltip="Name of the take in output/helios_store/takes, a readable list of its chunks. The chunks themselves "
        "are found by their content, under any name.",
    )


def seed_changes_input() -> io.String.Input:
    return io.String.Input(
        "seed_changes",
        default="",
        optional=True,
        advanced=True,
        tooltip="Rolls the film again from a chunk on: '7: 123, 9: 5' gives chunk 7 and what follows the seed 123, "
        "chunk 9 and what follows 5. Chunks before stay as they are. The film strip's button writes it.",
    )


def manifest_settings(
    history: History,
    seed: int,
    num_chunks: int,
    prompt: Mapping[str, Any] | None,
    seed_changes: SeedChanges = (),
) -> dict[str, Any]:
    """What a manifest says about a take; texts only where metadata may be written."""
    settings: dict[str, Any] = {
        "width": history.width,
        "height": history.height,
        "seed": seed,
        "num_chunks": num_chunks,
    }
    if seed_changes:
        settings["seed_changes"] = dict(seed_changes)
    if prompt and not args.disable_metadata:
        texts = {key: node["inputs"].get("text") for key, node in prompt.items() if "inputs" in node}
        settings["prompts"] = {key: text for key, text in texts.items() if isinstance(text, str)}
    return settings
