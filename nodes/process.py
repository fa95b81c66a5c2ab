"""Helios Process Video: a film of any length through core's upscale and frame interpolation models."""

from __future__ import annotations

import functools
import io as bytes_io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from comfy.utils import ProgressBar, common_upscale
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..helios_core.errors import HeliosError
from ..helios_core.video.audio import CopiedSound, sound_of
from ..helios_core.video.growing import PARTIAL_SUFFIX
from ..helios_core.video.process import in_groups, interpolated, write_processed
from ..helios_core.video.reader import VideoReader
from ..helios_core.video.segments import CODECS, VideoSettings
from .adapters.graph_checks import check_node
from .adapters.pictures import check_on_disk, interruptible
from .adapters.sockets import Least
from .render import Target, file_inputs

LEAST_SCALE, LARGEST_SCALE = 0.1, 8.0


class HeliosProcessVideo(io.ComfyNode):
    """A film of any length through core's upscale and frame interpolation models, in constant memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosProcessVideo",
            display_name="Helios Process Video",
            category="Helios/video",
            description="Enlarges a film, with an upscale model or without, and adds frames with a frame interpolation "
            "model, a few frames at a time: memory does not grow with its length. The sound is copied.",
            search_aliases=["helios upscale", "upscale video", "interpolate video", "rife", "long video"],
            is_output_node=True,
            inputs=[
                io.Video.Input("video", tooltip="A film on disk: of Render Video, or of Load Video."),
                io.UpscaleModel.Input("upscale_model", optional=True, tooltip="Of core's Load Upscale Model."),
                io.Custom("INTERP_MODEL").Input(
                    "interp_model", optional=True, tooltip="Of core's Load Frame Interpolation Model."
                ),
                io.Int.Input(
                    "multiplier",
                    default=2,
                    min=2,
                    max=16,
                    tooltip="How many times as many frames a second, with an interpolation model.",
                ),
                io.Int.Input(
                    "frames_at_once",
                    default=8,
                    min=1,
                    max=128,
                    advanced=True,
                    tooltip="Frames in memory at a time. More is hardly faster.",
                ),
                *file_inputs("video/Helios_processed"),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    optional=True,
                    min=Least(LEAST_SCALE),
                    max=LARGEST_SCALE,
                    step=0.25,
                    round=0.001,
                    tooltip="Times the size, by Lanczos and after the models: 2 doubles a film without any, 0.5 halves "
                    "what a model of 4 times makes.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The file on disk.")],
        )

    @classmethod
    def validate_inputs(cls) -> bool:
        return check_node()

    @classmethod
    def execute(
        cls,
        video: Any,
        multiplier: int,
        frames_at_once: int,
        codec: str = CODECS[0],
        quality: int = 18,
        filename_prefix: str = "video/Helios_processed",
        upscale_model: Any = None,
        interp_model: Any = None,
        scale: float = 1.0,
    ) -> io.NodeOutput:
        check_on_disk(video)
        if upscale_model is None and interp_model is None and scale == 1:
            raise HeliosError(
                "upscale_model and interp_model are both not connected; connect one of them, or set scale to another "
                "size."
            )
        part = video.get_active_trim_window()
        sound = functools.partial(CopiedSound, source=_opened(video), start=part[0], duration=part[1])
        has_sound = sound_of(_opened(video)) is not None
        with VideoReader(_opened(video), *part) as reader:
            target = Target(filename_prefix, reader.width, reader.height)
            fps = (reader.fps or 24.0) * (1 if interp_model is None else multiplier)
            groups = in_groups(_watched(reader), frames_at_once)
            path = write_processed(
                _scaled(_changed(groups, upscale_model, interp_model, multiplier), scale),
                target.folder / f"{target.name}_process{PARTIAL_SUFFIX}",
                lambda width, height: VideoSettings(width, height, fps, codec, quality),
                target.publish,
                sound if has_sound else None,
            )
        saved = ui.SavedResult(path.name, target.subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([saved]))


def _opened(video: Any) -> str | bytes_io.BytesIO:
    """The film's file; what lies in memory anew for everyone who reads it."""
    source = video.get_stream_source()
    return bytes_io.BytesIO(source.getvalue()) if isinstance(source, bytes_io.BytesIO) else source


def _watched(reader: VideoReader) -> Iterator[np.ndarray]:
    bar = ProgressBar(max(1, reader.frames))
    for frame in interruptible(reader):
        yield frame
        bar.update(1)


def _changed(groups: Iterable[Tensor], upscale_model: Any, interp_model: Any, multiplier: int) -> Iterator[Tensor]:
    """Interpolated first: between small frames it is cheaper."""
    if interp_model is not None:
        from comfy_extras.nodes_frame_interpolation import FrameInterpolate

        groups = interpolated(
            groups, lambda frames: FrameInterpolate.execute(interp_model, frames, multiplier).result[0]
        )
    for group in groups:
        if upscale_model is None:
            yield group
            continue
        from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

        yield ImageUpscaleWithModel.execute(upscale_model, group).result[0]


def _scaled(groups: Iterable[Tensor], scale: float) -> Iterator[Tensor]:
    """Groups at ``scale`` times their size, in whole pairs of pixels, which video files need."""
    for group in groups:
        if scale == 1:
            yield group
            continue
        height, width = (max(2, 2 * round(side * scale / 2)) for side in group.shape[1:3])
        yield common_upscale(group.movedim(-1, 1), width, height, "lanczos", "disabled").movedim(1, -1)
