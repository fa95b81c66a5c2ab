"""Load the Wan 2.1 VAE from a released folder or a single file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import HeliosError
from ..networks.vae.config import VAEConfig
from ..networks.vae.model import WanVAE
from ..variants import LATENT_CHANNELS, LATENT_SCALE
from .folder import read_json, read_tensors, weight_files
from .load import check_state_dict
from .vae_names import native_vae, vae_from_diffusers


def load_vae(path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> WanVAE:
    """Build a WanVAE from a released folder, from its vae/, or from a single file in either naming.

    The file is memory-mapped; where its dtype and device are the ones asked for, nothing is copied.

    Raises:
        HeliosError: a missing, damaged or foreign file.
    """
    path = Path(path)
    if path.is_file():
        state_dict = native_vae(read_tensors([path]), path)
    else:
        path = path / "vae" if (path / "vae").is_dir() else path
        state_dict = vae_from_diffusers(read_tensors(weight_files(path)), path)
    vae = vae_without_data(path, state_dict)
    vae.load_state_dict(state_dict, assign=True)
    return vae.requires_grad_(False).eval().to(device=device, dtype=dtype)


def vae_without_data(path: Path, state_dict: Mapping[str, Any]) -> WanVAE:
    """The VAE that a file's or a vae folder's tensors, or their entries, under our names belong to.

    Raises:
        HeliosError: a foreign configuration; missing, extra or misshaped tensors.
    """
    if path.is_file():
        # All else is the same in every Wan 2.1 VAE.
        config = VAEConfig(base_dim=max(1, *state_dict["encoder.conv1.weight"].shape[:1]))
    else:
        config = VAEConfig.from_diffusers(read_json(path / "config.json"), str(path / "config.json"))
    if (config.z_dim, config.spatial_factor, config.temporal_factor) != (LATENT_CHANNELS, LATENT_SCALE, 4):
        raise HeliosError(
            f"{path} has {config.z_dim} channels at 1/{config.spatial_factor} of the size and "
            f"1/{config.temporal_factor} of the frames; Helios needs the Wan 2.1 VAE."
        )
    vae = WanVAE(config, device="meta")
    check_state_dict(vae, state_dict, path, "Wan 2.1 VAE")
    return vae
