"""A segment: one chunk as a small MP4 of its own, which begins with a key frame at time 0.

The same frames give the same segment whatever came before, so a film is its segments one after the other. x264 keeps
that promise to the byte; x265 reads memory that it has not written, and may code a block of a chunk that is encoded
again differently.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
from torch import Tensor

from .writer import add_video_stream, check_video_options, video_frame


@dataclass(frozen=True)
class VideoSettings:
    """Size in pixels, frames per second, codec of ``writer.CODECS`` and crf (lower is better and larger)."""

    width: int
    height: int
    fps: float = 24
    codec: str = "h264"
    crf: float = 18

    def __post_init__(self) -> None:
        check_video_options(self.width, self.height, self.fps, self.codec, self.crf)

    @property
    def rate(self) -> Fraction:
        return Fraction(self.fps).limit_denominator(1001)


def encode_segment(frames: Tensor, settings: VideoSettings) -> bytes:
    """One chunk's uint8 frames [F,H,W,3] as an MP4."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = add_video_stream(
            container, settings.width, settings.height, settings.rate, settings.codec, settings.crf
        )
        for index, image in enumerate(frames.cpu().numpy()):
            container.mux(stream.encode(video_frame(image, index, 1 / settings.rate)))
        container.mux(stream.encode(None))
    return file.getvalue()
