"""Load the Wan 2.1 VAE from a released folder."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint.folder import read_json, read_tensors, weight_files
from ..checkpoint.load import check_state_dict
from ..checkpoint.vae_names import vae_from_diffusers
from .config import VAEConfig
from .model import WanVAE


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> WanVAE:
    """Build a WanVAE from ``folder``, a release's vae/, with config.json and safetensors.

    The file is memory-mapped; where its dtype and device are the ones asked for, nothing is copied.

    Raises:
        HeliosError: a missing, damaged or foreign file.
    """
    folder = Path(folder)
    config = VAEConfig.from_diffusers(read_json(folder / "config.json"))
    state_dict = vae_from_diffusers(read_tensors(weight_files(folder)))
    vae = WanVAE(config, device="meta")
    check_state_dict(vae, state_dict, folder, "Wan 2.1 VAE")
    vae.load_state_dict(state_dict, assign=True)
    return vae.requires_grad_(False).eval().to(device=device, dtype=dtype)
