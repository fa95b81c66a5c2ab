"""Helios Drift Report: how a film changes on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..helios_core.errors import HeliosError
from ..helios_core.video.drift.meter import opencv
from ..helios_core.video.drift.plot import matplotlib_figure, picture
from ..helios_core.video.drift.report import DriftReport, report_frames, report_video
from ..helios_core.video.reader import VideoReader
from .adapters.aesthetic import installed_scores
from .adapters.pictures import interruptible, pixels
from .adapters.sockets import check_text
from .cutting import chunk_frames_input, chunk_numbers


class HeliosDriftReport(io.ComfyNode):
    """Measures how colour, sharpness and motion of a film change, and how strong its seams are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosDriftReport",
            display_name="Helios Drift Report",
            category="Helios/video",
            description="Measures how a film changes on its way: brightness, contrast, colour, sharpness and motion of "
            "every chunk, the seams between chunks, and the first 15 % of its frames against the last.",
            search_aliases=["helios drift", "helios quality", "helios seams", "helios bench", "video statistics"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input(
                    "video",
                    [io.Video, io.Image],
                    tooltip="A VIDEO, which is read frame by frame whatever its length, or frames as IMAGE.",
                ),
                chunk_frames_input("Frames from one chunk's border to the next. Helios makes 33.", least=2),
                io.String.Input(
                    "prompt_changes",
                    default="",
                    optional=True,
                    tooltip="Chunks at which the prompt changes, like '7, 14': marked in the plot, where a change is "
                    "no fault.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="A curve for every measure; red is worth a look."),
                io.String.Output(display_name="json", tooltip="All figures, for other programs."),
                io.String.Output(display_name="text", tooltip="A table of both ends, and what drifts in one sentence."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt_changes: str | None = None) -> bool | str:
        try:
            # Before a film is rendered that could not be measured.
            opencv()
            matplotlib_figure()
            check_text("prompt_changes", prompt_changes or "")
            chunk_numbers("prompt_changes", prompt_changes or "")
        except HeliosError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, video: Any, chunk_frames: int, prompt_changes: str = "") -> io.NodeOutput:
        report = _report(video, chunk_frames, chunk_numbers("prompt_changes", prompt_changes))
        plot = torch.from_numpy(picture(report)).unsqueeze(0).float() / 255
        return io.NodeOutput(plot, report.json(), report.text(), ui=ui.PreviewImage(plot, cls=cls))


def _report(video: Any, chunk_frames: int, changes: tuple[int, ...]) -> DriftReport:
    scores = installed_scores()
    if isinstance(video, Tensor):
        return report_frames(interruptible(pixels(video)), "frames", chunk_frames, changes, scores)
    if isinstance(video, InputImpl.VideoFromFile):
        source = video.get_stream_source()
        with VideoReader(source, *video.get_active_trim_window()) as reader:
            name = Path(source).name if isinstance(source, str | Path) else "video"
            return report_video(reader, name, chunk_frames, changes, interruptible, scores)
    return report_frames(interruptible(pixels(video.get_components().images)), "video", chunk_frames, changes, scores)
