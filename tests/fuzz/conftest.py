"""Shared modules of the fuzz tests, and folders that they damage copies of."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def _load(name: str) -> None:
    """A file beside this one as the module `helios_fuzz_<name>`."""
    module_name = f"helios_fuzz_{name}"
    spec = importlib.util.spec_from_file_location(module_name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)


_load("oracles")
_load("strategies")


@pytest.fixture
def damaged_folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """`damaged_folder("vae/config.json", data)`: helios-tiny with that file's content replaced.

    The folder is the same one at each call; all other files are links to the session's.
    """
    source, folder = tiny_folder("distilled"), tmp_path / "model"
    shutil.copytree(source, folder, copy_function=os.link)
    names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    changed: list[str] = []

    def damage(name: str, data: bytes) -> Path:
        for before in changed:
            (folder / before).unlink()
        for file in names:
            if not (folder / file).exists():
                os.link(source / file, folder / file)
        changed[:] = [name]
        (folder / name).unlink()
        (folder / name).write_bytes(data)
        return folder

    return damage
