"""Which ComfyUI the pack works with. ComfyUI imports this before the nodes, which an older one fails to load."""

from __future__ import annotations

import re

# Also in pyproject.toml, `requires-comfyui`, where managers of node packs look.
OLDEST_COMFYUI = "0.27.0"


def check_comfyui(version: str) -> None:
    """Raises ImportError for a ComfyUI that is too old; what is no version is let through."""
    found, oldest = _numbers(version), _numbers(OLDEST_COMFYUI)
    if found and found + (0,) * (len(oldest) - len(found)) < oldest:
        raise ImportError(
            f"Helios needs ComfyUI {OLDEST_COMFYUI} or newer and this is {version}: update ComfyUI and restart it."
        )


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, match[1].split("."))) if match else ()
