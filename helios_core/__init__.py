"""Helios video generation without ComfyUI: loader, history context, samplers, chunk chain, VAE, video files."""

from .errors import HeliosError

__all__ = ["HeliosError"]
