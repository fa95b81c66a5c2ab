"""A film's chunks one by one: frames of one, and a film cut at borders."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import torch
from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..helios_core.errors import HeliosError, shortened
from ..helios_core.take.film import MOST_CHUNKS
from ..helios_core.variants import CHUNK_FRAMES, CHUNK_LATENT_FRAMES
from ..helios_core.video.reader import read_chunk
from .adapters.pictures import check_on_disk
from .adapters.sockets import check_text
from .chunks import check_chain_latents

FRAMES_IN_VIDEO = "Frames of a chunk in a VIDEO. Helios makes 33."


def chunk_frames_input(tooltip: str, least: int = 1) -> io.Int.Input:
    return io.Int.Input("chunk_frames", default=CHUNK_FRAMES, min=least, max=10_000, advanced=True, tooltip=tooltip)


class HeliosChunkFrames(io.ComfyNode):
    """The frames of one chunk, without those of the others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosChunkFrames",
            display_name="Helios Chunk Frames",
            category="Helios/video",
            description="The frames of one chunk of a film as IMAGE: of a video file, or of a latent. The rest of the "
            "film is not decoded.",
            search_aliases=["helios extract", "helios frames", "get chunk"],
            inputs=[
                io.MultiType.Input(
                    "film",
                    [io.Video, io.Latent],
                    tooltip="A VIDEO, as Render Video makes it, or the LATENT of Chunk Chain.",
                ),
                io.Int.Input(
                    "chunk",
                    default=0,
                    min=0,
                    max=MOST_CHUNKS - 1,
                    tooltip="Which chunk, counted from 0 as in the strip.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes a LATENT; not needed for a VIDEO."),
                chunk_frames_input(FRAMES_IN_VIDEO),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The chunk's frames, in order.")],
        )

    @classmethod
    def execute(cls, film: Any, chunk: int, chunk_frames: int, vae: Any = None) -> io.NodeOutput:
        if isinstance(film, dict):
            return io.NodeOutput(_decoded(film["samples"], chunk, vae))
        if isinstance(film, InputImpl.VideoFromFile):
            frames = read_chunk(film.get_stream_source(), chunk, chunk_frames, *film.get_active_trim_window())
            return io.NodeOutput(torch.from_numpy(frames).float() / 255)
        images = film.get_components().images[chunk * chunk_frames :][:chunk_frames]
        if not len(images):
            raise HeliosError(f"chunk={chunk} is beyond the end of the video; chunks are counted from 0.")
        return io.NodeOutput(images)


def _decoded(samples: Tensor, chunk: int, vae: Any) -> Tensor:
    check_chain_latents(samples)
    if vae is None:
        raise HeliosError("vae is not connected, and a LATENT needs it; connect Helios VAE Loader.")
    count = samples.shape[2] // CHUNK_LATENT_FRAMES
    if chunk >= count:
        raise HeliosError(f"chunk={chunk} is beyond the latent's {count} chunks; chunks are counted from 0.")
    part = samples[:, :, chunk * CHUNK_LATENT_FRAMES :][:, :, :CHUNK_LATENT_FRAMES]
    return torch.cat([vae.decode(clip.unsqueeze(0)).flatten(0, -4) for clip in part])


class HeliosSplitVideo(io.ComfyNode):
    """A film cut into clips at borders of chunks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosSplitVideo",
            display_name="Helios Split Video",
            category="Helios/video",
            description="Cuts a film into clips at borders of chunks, with its sound. Clips are parts of the file, "
            "read when they are used: nothing is decoded or copied here.",
            search_aliases=["helios cut", "helios trim", "split clips"],
            inputs=[
                io.Video.Input("video", tooltip="A film on disk: of Render Video, or of Load Video."),
                io.String.Input(
                    "chunks",
                    default="7, 14",
                    tooltip="Where clips begin, beside the film's start: '7, 14' makes three clips of chunks 0 to 6, 7 "
                    "to 13, and the rest.",
                ),
                chunk_frames_input(FRAMES_IN_VIDEO),
            ],
            outputs=[
                io.Video.Output(
                    display_name="clips", is_output_list=True, tooltip="What is behind runs once for every clip."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, chunks: str | None = None) -> bool | str:
        try:
            check_text("chunks", chunks or "")
            chunk_numbers("chunks", chunks or "")
        except HeliosError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, video: Any, chunks: str, chunk_frames: int) -> io.NodeOutput:
        check_on_disk(video)
        fps, begin = float(video.get_frame_rate()), video.get_active_trim_window()[0]
        length, source = video.get_duration(), video.get_stream_source()
        starts = [0, *(chunk for chunk in chunk_numbers("chunks", chunks) if chunk)]
        times = [chunk * chunk_frames / fps for chunk in starts]
        if times[-1] >= length:
            raise HeliosError(
                f"chunks has {starts[-1]}, which is beyond the film's {length:.2f} s; leave out what is beyond."
            )
        clips = [
            InputImpl.VideoFromFile(source, start_time=begin + start, duration=end - start)
            for start, end in pairwise([*times, length])
        ]
        return io.NodeOutput(clips)


def chunk_numbers(name: str, text: str) -> tuple[int, ...]:
    """Chunks listed as ``7, 14``, in order.

    Raises:
        HeliosError: not whole numbers, or beyond the longest film.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not re.fullmatch(r"[0-9]{1,5}", part) or int(part) >= MOST_CHUNKS:
            raise HeliosError(f"{name} has {shortened(part)}, no chunk; list chunk numbers like '7, 14'.")
    return tuple(sorted({int(part) for part in parts}))
