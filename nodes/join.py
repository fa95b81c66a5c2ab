"""Helios Join Videos: a clip, chunks made by hand and rendered films as one file."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..helios_core.video.audio import shifted
from ..helios_core.video.join import Part, file_part, join_parts, settings_for
from .adapters.graph_checks import check_node
from .adapters.pictures import interruptible, pixels
from .render import Target, audio_input, audio_offset_input, file_inputs, file_metadata, fps_input

MOST_PARTS = 100


class HeliosJoinVideos(io.ComfyNode):
    """Joins videos and frames to one file; encoded pictures are copied where the parts fit each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        part = io.Autogrow.TemplatePrefix(
            io.MultiType.Input(
                "part",
                [io.Video, io.Image],
                tooltip="A VIDEO, which is read frame by frame whatever its length, or frames as IMAGE.",
            ),
            prefix="part_",
            min=1,
            max=MOST_PARTS,
        )
        return io.Schema(
            node_id="HeliosJoinVideos",
            display_name="Helios Join Videos",
            category="Helios/video",
            description="Joins videos and frames to one file, in order: the clip that a film continues, chunks made by "
            "hand, films of Helios Render Video. What is encoded alike is copied, not encoded again.",
            search_aliases=["helios concat", "concatenate videos", "helios append video", "helios audio"],
            is_output_node=True,
            inputs=[
                io.Autogrow.Input(
                    "parts", template=part, tooltip="Parts in order; a free socket appears as you connect."
                ),
                fps_input("Used where all parts are frames; videos bring their own."),
                *file_inputs(
                    "video/Helios_joined",
                    " Used for what is encoded anew; films of Render Video with the same codec and quality are copied.",
                ),
                audio_input(),
                audio_offset_input(),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="The file on disk; Save Video copies it without encoding it again."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, parts: dict[str, None] | None = None) -> bool:
        # Core hands over growing inputs whether they are named or not, here without values.
        return check_node()

    @classmethod
    def execute(
        cls,
        parts: dict[str, Any],
        fps: float = 24.0,
        codec: str = "h264",
        quality: int = 18,
        filename_prefix: str = "video/Helios_joined",
        audio: dict[str, Any] | None = None,
        audio_offset: float = 0.0,
    ) -> io.NodeOutput:
        given = [part_of(part) for part in parts.values() if part is not None]
        settings = settings_for(given, fps, codec, quality)
        sound = None if audio is None else shifted(audio, audio_offset)
        target = Target(filename_prefix, settings.width, settings.height)
        unfinished = target.folder / f".{uuid.uuid4().hex[:8]}.part.mp4"
        try:
            join_parts(given, unfinished, settings, sound, file_metadata(cls.hidden))
            path = target.publish(unfinished)
        finally:
            unfinished.unlink(missing_ok=True)
        saved = ui.SavedResult(path.name, target.subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([saved]))


def part_of(part: Any) -> Part:
    """A socket's value as a part; a VIDEO of a file is read from there.

    Raises:
        HeliosError: it has no frames.
    """
    if isinstance(part, InputImpl.VideoFromFile):
        found = file_part(part.get_stream_source(), *part.get_active_trim_window())
        return Part(lambda: interruptible(found.frames()), found.width, found.height, found.fps, found.file)
    fps = None
    if not isinstance(part, Tensor):
        components = part.get_components()
        part, fps = components.images, float(components.frame_rate)
    next(pixels(part))  # refused before anything is written
    return Part(partial(_frames, part), part.shape[2], part.shape[1], fps)


def _frames(images: Tensor) -> Any:
    return interruptible(pixels(images))
