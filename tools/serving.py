"""A ComfyUI with this checkout as its only custom node, for the tools that look at it in a browser."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helios_setup.comfyui import existing_tree, link_folder
from helios_setup.examples import write_examples
from helios_setup.paths import PACK_NAME, ROOT
from helios_setup.server import ComfyServer

# The folder's name, which differs from one installation to another.
PLAIN: dict[str, Any] = {"Comfy.NodeBadge.NodeSourceBadgeMode": "None"}


@contextlib.contextmanager
def template_server(comfyui: str | None = None, files: Sequence[str] = ()) -> Iterator[ComfyServer]:
    """A server on a scratch folder, with the input files that the templates name.

    Args:
        comfyui: ComfyUI folder instead of the checkout's own.
        files: empty files to have there, so that lists show their names.

    Raises:
        SystemExit: there is no ComfyUI.
    """
    tree = existing_tree(comfyui)
    if tree is None:
        sys.exit("no ComfyUI: run `python run.py setup` first")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        link_folder(ROOT, base / "custom_nodes" / PACK_NAME)
        write_examples(base / "input")
        for name in files:
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).touch()
        directories = ("--base-directory", scratch, "--temp-directory", scratch)
        arguments = ("--cpu", *directories, "--database-url", "sqlite:///:memory:")
        with ComfyServer(tree, Path(sys.executable), base / "comfyui.log", arguments) as server:
            yield server
