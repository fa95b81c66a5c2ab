"""Downloading a released checkpoint from within ComfyUI; happens only when this node is run."""

from __future__ import annotations

import logging

import comfy.model_management
from comfy_api.latest import ComfyAPISync, io, ui

from ..helios_core.commands.download import download
from ..helios_core.variants import DEFAULT, VARIANTS
from .adapters.model_files import diffusers_folder, installed_folders

# More would make the progress bar the slowest part of a fast download.
SMALLEST_STEP = 1 / 500

log = logging.getLogger(__name__)


class HeliosDownloadModel(io.ComfyNode):
    """Downloads a released Helios checkpoint into models/diffusers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosDownloadModel",
            display_name="Helios Download Model",
            category="Helios/loaders",
            description="Downloads a released Helios checkpoint from the Hugging Face hub into models/diffusers: "
            "80 GB, float32 as released. It continues where it was interrupted and skips what training alone needs. "
            "Nothing is downloaded unless this node is run.",
            search_aliases=["install helios", "helios weights", "huggingface"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default=DEFAULT.name,
                    tooltip="distilled is the fast one (6 steps per chunk); base and mid take more steps.",
                )
            ],
            outputs=[io.String.Output("folder", tooltip="The folder's name, as the Helios loaders list it.")],
        )

    @classmethod
    def fingerprint_inputs(cls, variant: str) -> bool:
        # Deleting the folder must make the node run again.
        return VARIANTS[variant].folder in installed_folders()

    @classmethod
    def execute(cls, variant: str) -> io.NodeOutput:
        name = VARIANTS[variant].folder
        folder = download(variant, diffusers_folder() / name, _report())
        log.info("Helios %s is in %s", variant, folder)
        return io.NodeOutput(name, ui=ui.PreviewText(f"{name} is installed; reload the page to see it in the lists."))


def _report():
    """Progress on the node, and the place where an interrupt takes effect."""
    execution = ComfyAPISync().execution
    shown = -1.0

    def report(done: int, total: int) -> None:
        nonlocal shown
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done == total or done - shown >= total * SMALLEST_STEP:
            shown = done
            execution.set_progress(done, max(total, 1))

    return report
