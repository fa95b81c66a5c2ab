"""Headless Wan 2.1 VAE."""

from .config import VAEConfig
from .loading import load_vae
from .model import WanVAE

__all__ = ["VAEConfig", "WanVAE", "load_vae"]
