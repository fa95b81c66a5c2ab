"""Where a saved history lies that a node names."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...helios_core.errors import HeliosError, shortened
from .sockets import check_text

SUFFIX = ".safetensors"


def history_path(file: str) -> Path:
    """The file behind a choice.

    Raises:
        HeliosError: it leaves ComfyUI's folders, or does not exist.
    """
    check_text("file", file)
    name, folder = folder_paths.annotated_filepath(file)
    folder = folder or folder_paths.get_input_directory()
    path = Path(folder) / name
    if not folder_paths.is_within_directory(folder, str(path)) or path.suffix != SUFFIX:
        raise HeliosError(
            f"file {shortened(file)} is not a {SUFFIX} file within ComfyUI's input or output folder; choose one."
        )
    try:
        found = path.is_file()
    except OSError:  # a name too long for the file system
        found = False
    if not found:
        raise HeliosError(f"file {shortened(file)} does not exist; choose one that Helios Save History wrote.")
    return path
