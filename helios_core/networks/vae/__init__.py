"""The Wan 2.1 VAE."""

from .config import VAEConfig
from .model import WanVAE

__all__ = ["VAEConfig", "WanVAE"]
