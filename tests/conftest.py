"""What every test may use: the checkout's tools by import, tiny checkpoints, and the marks' meaning."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_THREADS = 4
# Half of helios-tiny's: a chunk of 64x64 is decoded in 0.1 s of a processor at 4 channels, in 0.2 s at 8.
VAE_WIDTH = 4
# Fixtures of a module that open a browser once for each of the frontend's two node designs.
BROWSERS = ("frontend", "opened", "strip")


def _import_from_checkout(name: str, folder: Path) -> None:
    """Make a package of the checkout importable as ``name`` without the checkout on sys.path.

    The checkout's `nodes` package would hide ComfyUI's module of that name there.
    """
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_import_from_checkout("helios_setup", ROOT / "helios_setup")
# `tools`, `benchmarks` and `training` are too common as names to claim.
_import_from_checkout("helios_tools", ROOT / "tools")
_import_from_checkout("helios_benchmarks", ROOT / "benchmarks")
_import_from_checkout("helios_training", ROOT / "training")


def load_file_beside(name: str, file: Path) -> ModuleType:
    """A helper module of the tests as ``name``; test folders are not packages."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Here, because pytest applies --hypothesis-profile before it looks into folders below.
load_file_beside("helios_fuzz_profiles", Path(__file__).parent / "fuzz" / "profiles.py").register()
escaped_reports = load_file_beside("helios_escaped_reports", Path(__file__).parent / "escaped_reports.py")
alone = load_file_beside("helios_alone", Path(__file__).parent / "alone.py")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(escaped_reports)
    config.pluginmanager.register(alone)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--alone", action="store_true", help="run every test in a process of its own (POSIX)")


# Behind pytest-random-order.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _keep_browsers_together(items)
    if not config.getoption("--run-slow"):
        _skip(items, "slow", "slow: run with --run-slow")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "needs a CUDA device")


def _keep_browsers_together(items: list[pytest.Item]) -> None:
    """In a random order too, the tests of one file and one node design follow each other: they share a browser."""
    turns: dict[tuple[Path, str], int] = {}

    def turn(item: pytest.Item) -> int:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        browser = next((str(parameters[name]) for name in BROWSERS if name in parameters), "")
        return turns.setdefault((item.path, browser), len(turns))

    items.sort(key=turn)


def _skip(items: list[pytest.Item], mark: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Few threads: the tensors are tiny, and many threads cost more than they give."""
    if "OMP_NUM_THREADS" not in os.environ and "torch" in sys.modules:
        import torch

        torch.set_num_threads(min(MOST_THREADS, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """`tiny_folder("distilled")`: helios-tiny with a narrower VAE in the released layout, written once a session.

    Read-only by agreement: a test that damages files copies the folder first.
    """
    from helios_core.commands import tiny

    written: dict[str, Path] = {}

    def folder(variant: str = "distilled") -> Path:
        if variant not in written:
            target = tmp_path_factory.mktemp("helios-tiny") / f"helios-tiny-{variant}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(tiny.VAE_CONFIG, "base_dim", VAE_WIDTH)
                tiny.write_tiny(target, variant=variant)
            written[variant] = target
        return written[variant]

    yield folder
