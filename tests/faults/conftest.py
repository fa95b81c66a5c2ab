"""Shared modules of the fault tests, and the film that an undisturbed run makes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _load(module_name: str, file: str) -> ModuleType:
    """A file beside this one as a module; test folders are not packages."""
    spec = importlib.util.spec_from_file_location(module_name, Path(__file__).with_name(file))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


film = _load("helios_faults_film", "film.py")
_load("helios_faults_disk", "disk.py")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> tuple[bytes, torch.Tensor]:
    """The finished file's bytes and the latents."""
    path, latents = film.render(tmp_path_factory.mktemp("undisturbed"))
    return path.read_bytes(), latents
