"""The Wan 2.1 VAE of a released folder or a single file as ComfyUI's own VAE type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
from torch import Tensor

from ..helios_core.checkpoint.folder import weight_files
from ..helios_core.checkpoint.header import read_header
from ..helios_core.checkpoint.vae_names import native_vae


def load_vae(path: str | Path) -> comfy.sd.VAE:
    """Core's VAE with the weights of ``path``/vae, or of the file ``path`` in either naming.

    Raises:
        HeliosError: a file is missing, damaged or foreign.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for file in [path] if path.is_file() else weight_files(path / "vae"):
        read_header(file)
        tensors.update(comfy.utils.load_torch_file(str(file)))
    vae = comfy.sd.VAE(sd=native_vae(tensors, path))
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (_reload_patcher, (path,))
    return vae


def _reload_patcher(path: Path, **_: Any) -> Any:
    return load_vae(path).patcher
