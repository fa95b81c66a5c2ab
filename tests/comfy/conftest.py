"""`comfy`: one real ComfyUI for the whole session; `new_comfy`: one for a test that breaks it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

from helios_setup.comfyui import existing_tree
from helios_setup.paths import PACK_NAME
from helios_setup.server import ComfyServer
from helios_setup.workflow import VARIANTS


def _load(name: str) -> ModuleType:
    """A file beside this one as the module `helios_comfy_<name>`; test folders are not packages."""
    module_name = f"helios_comfy_{name}"
    spec = importlib.util.spec_from_file_location(module_name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


harness = _load("server")
_load("graphs")
_load("one_chunk")
strips = _load("strip")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.comfy)


@pytest.fixture(scope="session")
def comfyui_tree() -> Path:
    """The ComfyUI folder: COMFYUI_PATH, or what `run.py setup` unpacked."""
    tree = existing_tree()
    if tree is None:
        pytest.skip("no ComfyUI: run `python run.py setup`, or set COMFYUI_PATH to a checkout")
    return tree


@pytest.fixture(scope="session")
def tiny_models(tiny_folder: Callable[[str], Path]) -> dict[str, Path]:
    """helios-tiny of every variant, by the name it has under models/diffusers."""
    return {f"helios-tiny-{variant}": tiny_folder(variant) for variant in VARIANTS}


@pytest.fixture(scope="session")
def comfy(
    comfyui_tree: Path, tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """The session's server: CPU, everything in fp32, latent previews on, helios-tiny-{base,mid,distilled} present.

    Tests leave it serving. Its base directory is `comfy.log_file.parent` (output/, input/, models/ inside).
    """
    base = harness.make_base(tmp_path_factory.mktemp("comfy"), tiny_models)
    arguments = ("--cpu", "--force-fp32", "--fp32-text-enc", "--preview-method", "latent2rgb")
    with harness.comfy_server(comfyui_tree, base, arguments) as server:
        yield server


@pytest.fixture
def new_comfy(comfyui_tree: Path, tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[Callable[..., ComfyServer]]:
    """`new_comfy(arguments=("--cpu",), packs=None)`: start another server on this test's own base directory.

    Calling it again starts on the same base, as after a crash. All are stopped at the test's end.
    """
    started: list[ComfyServer] = []

    def start(arguments: Sequence[str] = ("--cpu",), packs: dict[str, Path] | None = None) -> ComfyServer:
        base = harness.make_base(tmp_path / "comfy", tiny_models, packs)
        server = harness.comfy_server(comfyui_tree, base, arguments)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def released(tiny_folder: Callable[[str], Path]) -> tuple[Path, dict[str, Any], dict[str, str]]:
    """helios-tiny's tensors under diffusers' names, and its configuration as metadata."""
    folder, state = tiny_folder("distilled"), {}
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        state |= load_file(file)
    config = (folder / "transformer" / "config.json").read_text(encoding="utf-8")
    return folder, state, {"helios.config": config, "helios.variant": "distilled"}


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program that browser tests drive."""
    pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")
    from helios_tools.frontend import chromium_path

    program = chromium_path()
    if program is None:
        pytest.skip("no Chromium on PATH (Debian: apt install chromium), and HELIOS_CHROMIUM names none")
    return program


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where browser tests leave their pictures: the folder that HELIOS_SCREENSHOTS names, else a temporary one."""
    named = os.environ.get("HELIOS_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module", params=["classic", "new-design"])
def strip(request: pytest.FixtureRequest, comfy: ComfyServer, chromium: str, screenshots: Path) -> Iterator[Any]:
    """The film strip in the frontend, in one of its two node designs; a module's ``BLOBS`` as for `open_frontend`."""
    from helios_tools import frontend as browser  # needs the browser's driver

    settings = {"Comfy.VueNodes.Enabled": request.param == "new-design"}
    blobs = getattr(request.module, "BLOBS", False)
    count = strips.COUNT % PACK_NAME
    with browser.open_frontend(comfy.url, chromium, blobs=blobs, script=count, **settings) as opened:
        yield strips.Strip(opened, request.param, screenshots)
