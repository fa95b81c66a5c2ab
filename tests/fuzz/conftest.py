"""Shared modules of the fuzz tests, and folders that they damage copies of."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from helios_setup.comfyui import existing_tree
from helios_setup.server import ComfyServer
from helios_setup.workflow import VARIANTS


def _load(module_name: str, file: str) -> ModuleType:
    """A file near this one as a module, once; test folders are not packages."""
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, Path(__file__).parent / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


harness = _load("helios_comfy_server", "../comfy/server.py")
_load("helios_comfy_graphs", "../comfy/graphs.py")
_load("helios_fuzz_oracles", "oracles.py")
_load("helios_fuzz_strategies", "strategies.py")
_load("helios_fuzz_graphs", "graphs.py")
_load("helios_fuzz_served", "served.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "abused" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.comfy)


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


@pytest.fixture(scope="session")
def abused(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server of its own for hostile clients, so that other tests meet none of what they leave behind.

    Its base directory is `abused.log_file.parent`; nothing else is in the folder above.
    """
    tree = existing_tree()
    if tree is None:
        pytest.skip("no ComfyUI: run `python run.py setup`, or set COMFYUI_PATH to a checkout")
    models = {f"helios-tiny-{variant}": tiny_folder(variant) for variant in VARIANTS}
    base = harness.make_base(tmp_path_factory.mktemp("abused") / "comfy", models)
    arguments = ("--cpu", "--force-fp32", "--fp32-text-enc", "--preview-method", "latent2rgb")
    with harness.comfy_server(tree, base, arguments) as server:
        yield server
