"""Helios video generation without ComfyUI: loader, history context, samplers, chunk loop, VAE, video files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import HeliosError

if TYPE_CHECKING:
    from .pipeline import HeliosPipeline
    from .take.anti_drift import AntiDrift

__all__ = ["AntiDrift", "HeliosError", "HeliosPipeline"]


def __getattr__(name: str) -> Any:
    # At the first use: importing helios_core stays fast, and possible before torch is installed.
    if name == "HeliosPipeline":
        from .pipeline import HeliosPipeline

        return HeliosPipeline
    if name == "AntiDrift":
        from .take.anti_drift import AntiDrift

        return AntiDrift
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
