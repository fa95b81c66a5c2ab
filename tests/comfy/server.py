"""A real ComfyUI for tests: its own base directory, the checkout as its only custom node."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from helios_setup.comfyui import link_folder
from helios_setup.examples import write_examples
from helios_setup.paths import PACK_NAME, ROOT
from helios_setup.server import ComfyServer

FOLDERS = ("custom_nodes", "input", "output", "user", "models/diffusers")


def make_base(base: Path, models: Mapping[str, Path] | None = None, packs: Mapping[str, Path] | None = None) -> Path:
    """Lay out a base directory; several servers can run on the same tree, each with its own.

    Args:
        models: folders to show under models/diffusers, by name.
        packs: folders to show under custom_nodes, by name; the checkout alone when None.
    """
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, folder in (packs or {PACK_NAME: ROOT}).items():
        link_folder(folder, base / "custom_nodes" / name)
    write_examples(base / "input")
    for name, folder in (models or {}).items():
        link_folder(folder, base / "models" / "diffusers" / name)
    return base


def comfy_server(tree: Path, base: Path, arguments: Sequence[str] = ("--cpu",)) -> ComfyServer:
    """A server over `base` (see `make_base`), not started yet; its log is `base/comfyui.log`."""
    directories = ["--base-directory", str(base), "--temp-directory", str(base)]
    own = [*directories, "--database-url", "sqlite:///:memory:"]
    return ComfyServer(tree, Path(sys.executable), base / "comfyui.log", [*own, *arguments])
