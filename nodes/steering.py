"""Nodes that steer a film on its way: anti-drift, another anchor, held colours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ..helios_core.errors import HeliosError
from ..helios_core.take.anchor import newest_frame, with_anchor
from ..helios_core.take.anti_drift import LARGEST_THRESHOLD, AntiDrift
from ..helios_core.take.history import History
from ..helios_core.video.colour import anchored
from .adapters.sockets import Least
from .cutting import chunk_frames_input
from .history import HistoryType
from .reference_histories import encoded_anchor


def strength_input(tooltip: str) -> io.Float.Input:
    return io.Float.Input("strength", default=1.0, min=Least(0.0), max=1.0, step=0.05, round=0.0001, tooltip=tooltip)


class HeliosAntiDrift(io.ComfyNode):
    """Noises chunks that depart from the film so far, where later chunks see them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosAntiDrift",
            display_name="Helios Anti-Drift",
            category="Helios/history",
            description="Holds a long film: a chunk whose colours and contrast depart from the film so far is noised "
            "in the history, so that later chunks follow it less closely. The chunk itself stays as it is. Without "
            "this node Helios makes the same film as the reference.",
            search_aliases=["helios drift", "helios long video", "helios stabilise"],
            inputs=[
                HistoryType.Input("history", tooltip="Where the film begins, or goes on from here with anti-drift."),
                io.Float.Input(
                    "threshold",
                    default=AntiDrift.threshold,
                    min=Least(0.0),
                    max=LARGEST_THRESHOLD,
                    step=0.01,
                    round=0.0001,
                    tooltip="How far the mean and the variance of a chunk's latents must both be from the running ones."
                    " Less steps in more often; 0 at every chunk.",
                ),
                io.Float.Input(
                    "strength",
                    default=AntiDrift.strength,
                    min=Least(0.0),
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Standard deviation of the noise. Latents have about 1; Helios was trained with up to a "
                    "third.",
                ),
                io.Float.Input(
                    "momentum",
                    default=AntiDrift.momentum,
                    min=Least(0.0),
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    advanced=True,
                    tooltip="How slowly the running mean and variance follow the film: at 0.9 the newest chunk counts "
                    "a tenth.",
                ),
            ],
            outputs=[
                HistoryType.Output(display_name="history", tooltip="Connect it to Sample Chunk, Chunk Chain or Render.")
            ],
        )

    @classmethod
    def execute(cls, history: History, threshold: float, strength: float, momentum: float) -> io.NodeOutput:
        settings = AntiDrift(momentum=momentum, threshold=threshold, strength=strength)
        return io.NodeOutput(replace(history, anti_drift=settings.continuing(history.anti_drift)))


class HeliosAnchorHistory(io.ComfyNode):
    """Gives the film another anchor from here on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosAnchorHistory",
            display_name="Helios Anchor History",
            category="Helios/history",
            description="Replaces the film's anchor, the first frame that every chunk is shown, from here on: by the "
            "first frame of the newest chunk, so that a new scene keeps its own beginning, or by an image.",
            search_aliases=["helios new scene", "helios first frame", "helios reanchor"],
            inputs=[
                HistoryType.Input("history", tooltip="The history of the new scene's first chunk."),
                strength_input("1 replaces the anchor, less mixes the new one into it, 0 leaves it."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The new anchor, scaled to cover the video and cropped. Without it the first frame of the "
                    "newest chunk is taken.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the image; not needed without one."),
            ],
            outputs=[HistoryType.Output(display_name="history", tooltip="Connect it to Sample Chunk or Chunk Chain.")],
        )

    @classmethod
    def execute(cls, history: History, strength: float, image: Tensor | None = None, vae: Any = None) -> io.NodeOutput:
        if image is None:
            return io.NodeOutput(with_anchor(history, newest_frame(history), strength))
        if vae is None:
            raise HeliosError("vae is not connected, and image needs it; connect Helios VAE Loader.")
        return io.NodeOutput(with_anchor(history, encoded_anchor(vae, image, history), strength))


class HeliosColourAnchor(io.ComfyNode):
    """Holds a film's colours to those of its first chunk, or of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosColourAnchor",
            display_name="Helios Colour Anchor",
            category="Helios/video",
            description="Holds a film's colours: every chunk gets the mean and spread of red, green and blue that the "
            "first chunk has, or a picture. From one chunk to the next the correction changes gradually, so that "
            "nothing flickers at the borders.",
            search_aliases=["helios color", "helios colour match", "color correction", "helios drift"],
            inputs=[
                io.Image.Input("images", tooltip="The film's frames, in order, as Helios Decode gives them."),
                strength_input("How much of the way to the reference is gone; 0 leaves the frames as they are."),
                chunk_frames_input("Frames that are measured together. A Helios chunk is 33."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="A picture, or frames, whose colours the film should have; without it the first chunk's.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The same frames with held colours.")],
        )

    @classmethod
    def execute(
        cls, images: Tensor, strength: float, chunk_frames: int, reference: Tensor | None = None
    ) -> io.NodeOutput:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return io.NodeOutput(anchored(images, reference, strength, chunk_frames))
