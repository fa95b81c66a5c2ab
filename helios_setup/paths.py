"""Where things live in a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
COMFYUI = ROOT / ".comfyui"
OUTPUT = ROOT / "output"
API_WORKFLOWS = ROOT / "workflows" / "api"
PACK_NAME = "helios-comfyui"
WINDOWS = os.name == "nt"


def venv_program(name: str) -> Path:
    """Path of a console program (`python`, `pytest`, ...) of the environment."""
    return VENV / "Scripts" / f"{name}.exe" if WINDOWS else VENV / "bin" / name


def inside_venv() -> bool:
    """Whether this process runs on the environment's own Python."""
    return Path(sys.prefix).resolve() == VENV.resolve()
