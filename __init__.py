"""Helios for ComfyUI: ComfyUI imports this folder as a custom node pack."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
