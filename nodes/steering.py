"""Nodes that steer a film on its way: anti-drift, another anchor, an end frame, held colours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ..helios_core.errors import HeliosError
from ..helios_core.samplers import EndFrame
from ..helios_core.samplers.end_frame import MOST_GUIDED
from ..helios_core.take.anchor import newest_frame, with_anchor
from ..helios_core.take.anti_drift import LARGEST_THRESHOLD, AntiDrift
from ..helios_core.take.history import History
from ..helios_core.take.reference import still_clip
from ..helios_core.video.colour import anchored, anchored_latents
from .adapters.sampler import HeliosSampler, foreign_sampler
from .adapters.sockets import Least
from .chunks import check_chain_latents, num_chunks_input
from .cutting import chunk_frames_input
from .history import HistoryType
from .reference_histories import Encoder, encoded_anchor, fitted, normalise


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


class HeliosEndFrame(io.ComfyNode):
    """Guides the end of a film towards an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosEndFrame",
            display_name="Helios End Frame",
            category="Helios/sampling",
            description="Guides the last chunks of a film towards an image. Helios was not trained for it: the last "
            "frame comes close to the image, and what leads there is a guess, often a dissolve where the image shows "
            "another scene.",
            search_aliases=["helios last frame", "helios flf2v", "first last frame", "helios keyframe"],
            inputs=[
                io.Sampler.Input("sampler", tooltip="The Helios sampler node of the model's variant."),
                io.Vae.Input("vae", tooltip="Encodes the image."),
                io.Image.Input(
                    "image",
                    tooltip="The last frame, scaled to cover the video and cropped. Of several the first is used.",
                ),
                HistoryType.Input("history", tooltip="The history that num_chunks is counted from; its size counts."),
                num_chunks_input("Chunks from the history to the image: num_chunks of the chain or the film."),
                io.Int.Input(
                    "guided_chunks",
                    default=EndFrame.guided_chunks,
                    min=1,
                    max=MOST_GUIDED,
                    tooltip="How many chunks are guided, the last one included. More begin earlier and more gently.",
                ),
                strength_input("The pull on the last frame. 0 leaves the film as it is; less ends less exactly."),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect it where the sampler would be.")],
        )

    @classmethod
    def execute(
        cls,
        sampler: Any,
        vae: Any,
        image: Tensor,
        history: History,
        num_chunks: int,
        guided_chunks: int,
        strength: float,
    ) -> io.NodeOutput:
        if not isinstance(sampler, HeliosSampler):
            raise foreign_sampler(type(sampler).__name__)
        frame = fitted(image[:1], history.width, history.height)[:, :, 0]
        still = still_clip(frame, Encoder(vae), normalise)
        last = history.chunk + num_chunks - 1
        return io.NodeOutput(HeliosSampler(EndFrame(sampler.settings, still, last, guided_chunks, strength)))


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


class HeliosLatentColourAnchor(io.ComfyNode):
    """Holds the latents of a film to those of its first chunk, before they are decoded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLatentColourAnchor",
            display_name="Helios Latent Colour Anchor",
            category="Helios/latent",
            description="Holds a film's latents: every chunk gets the mean and spread that each of the 16 channels has "
            "in the first chunk, or in a reference. As Helios Colour Anchor, but before decoding: no frames are held "
            "in memory.",
            search_aliases=["helios color", "helios colour match", "helios drift", "adain"],
            inputs=[
                io.Latent.Input("latent", tooltip="The film's chunks in order, as Chunk Chain gives them."),
                strength_input("How much of the way to the reference is gone; 0 leaves the latents as they are."),
                io.Latent.Input(
                    "reference",
                    optional=True,
                    tooltip="Whole chunks whose statistics the film should have; without it the first chunk's.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Decode it with Helios Decode.")],
        )

    @classmethod
    def execute(cls, latent: dict, strength: float, reference: dict | None = None) -> io.NodeOutput:
        wanted = None if reference is None else reference["samples"]
        for samples in (latent["samples"], wanted):
            if samples is not None:
                check_chain_latents(samples)
        return io.NodeOutput({**latent, "samples": anchored_latents(latent["samples"], wanted, strength)})
