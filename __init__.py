"""Helios for ComfyUI: ComfyUI imports this folder as a custom node pack."""

from comfyui_version import __version__ as comfyui_version

from .helios_setup.supported import check_comfyui

check_comfyui(comfyui_version)

from .nodes import comfy_entrypoint  # noqa: E402 - an older ComfyUI would fail here, in words of its own

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
