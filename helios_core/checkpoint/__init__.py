"""Checkpoints: the only place that knows foreign layouts and key names."""

from .folder import ReleasedFolder, open_folder
from .load import load_transformer
from .names import from_diffusers, to_diffusers

__all__ = ["ReleasedFolder", "from_diffusers", "load_transformer", "open_folder", "to_diffusers"]
