"""The Wan 2.1 VAE of a released folder as ComfyUI's own VAE type."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
from torch import Tensor

from ..helios_core.checkpoint.folder import read_tensors, weight_files
from ..helios_core.checkpoint.vae_names import vae_from_diffusers


def load_vae(folder: str | Path) -> comfy.sd.VAE:
    """Core's VAE with the weights of ``folder``/vae.

    Raises:
        HeliosError: a file is missing, damaged or foreign.
    """
    return vae_of(read_tensors(weight_files(Path(folder) / "vae")))


def vae_of(tensors: dict[str, Tensor]) -> comfy.sd.VAE:
    """Core's VAE around AutoencoderKLWan tensors; core itself knows only the native Wan names."""
    vae = comfy.sd.VAE(sd=vae_from_diffusers(tensors))
    vae.throw_exception_if_invalid()
    return vae
