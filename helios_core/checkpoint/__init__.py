"""Checkpoints: the only place that knows foreign layouts and key names."""

from .folder import ReleasedFolder, open_folder
from .load import load_transformer
from .names import from_any_layout, from_diffusers, to_diffusers
from .source import TransformerSource, open_transformer

__all__ = [
    "ReleasedFolder",
    "TransformerSource",
    "from_any_layout",
    "from_diffusers",
    "load_transformer",
    "open_folder",
    "open_transformer",
    "to_diffusers",
]
