"""How frames are encoded; and a segment, one chunk as a small MP4 that begins with a key frame at time 0.

The same frames give the same segment whatever came before, so a film is its segments one after the other. x264 keeps
that promise to the byte; x265 reads memory that it has not written, and may code a block of a chunk that is encoded
again differently.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from ..errors import HeliosError

# ITU-T H.273 code points, as the file stores them.
_BT709 = 1
_LIMITED_RANGE = 1

# codec name -> encoder, its options, the MP4 sample entry (None: the container's choice).
# x264's macroblock tree is off, for the same frames gave another file now and then, without B-frames in 11 of 14
# processes side by side; a resumed take would not equal an uninterrupted one.
# HEVC is tagged hvc1 since Apple's players refuse the default hev1, and has no B-frames since x265 then
# gives the frames of very short clips random decoding times, which the container refuses.
_ENCODERS: dict[str, tuple[str, dict[str, str], str | None]] = {
    "h264": ("libx264", {"bf": "0", "mbtree": "0"}, None),
    "hevc": ("libx265", {"x265-params": "log-level=error:bframes=0"}, "hvc1"),
}
CODECS = tuple(_ENCODERS)

# Swscale's faster paths are off by one in places; these flags make the conversion exact and repeatable. Numbers of
# swscale.h, since PyAV has names for the last two from version 18 on only: BICUBIC, ACCURATE_RND, FULL_CHR_H_INT.
_CONVERSION = 0x4 | 0x40000 | 0x2000


def exact_rate(fps: float | Fraction) -> Fraction:
    """The frame rate that is meant: 23.976 is 24000/1001."""
    return Fraction(fps).limit_denominator(1001)


@dataclass(frozen=True)
class VideoSettings:
    """Even width and height in pixels, frames per second, one of CODECS and crf.

    crf is constant quality, 0..51; lower is better and larger. Raises HeliosError for what cannot be.
    """

    width: int
    height: int
    fps: float | Fraction = 24
    codec: str = "h264"
    crf: float = 18

    def __post_init__(self) -> None:
        if self.codec not in _ENCODERS:
            raise HeliosError(f"The codec is {self.codec!r}: choose one of {', '.join(CODECS)}.")
        encoder = _ENCODERS[self.codec][0]
        if encoder not in av.codec.codecs_available:
            raise HeliosError(
                f"The codec {self.codec} needs the encoder {encoder}, which this build of PyAV lacks: "
                "choose another codec or install the PyAV wheel."
            )
        sizes = (self.width, self.height)
        nearest = tuple(max(2, size // 2 * 2) for size in sizes)
        if sizes != nearest:
            raise HeliosError(
                f"The video size is {self.width}x{self.height}: both must be even, "
                f"the nearest is {nearest[0]}x{nearest[1]}."
            )
        if not (0 < self.fps <= 1000 and exact_rate(self.fps) > 0):
            raise HeliosError(f"The frame rate is {self.fps}: give frames per second, above 0 and at most 1000.")
        if not 0 <= self.crf <= 51:
            raise HeliosError(f"The crf is {self.crf}: give a value between 0 and 51.")

    @property
    def rate(self) -> Fraction:
        return exact_rate(self.fps)


def encode_segment(frames: Tensor, settings: VideoSettings) -> bytes:
    """One chunk's uint8 frames [F,H,W,3] as an MP4."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = add_video_stream(container, settings)
        encode_frames(container, stream, frames.cpu().numpy(), settings)
        container.mux(stream.encode(None))
    return file.getvalue()


def add_video_stream(container: Any, settings: VideoSettings) -> Any:
    """A stream for :func:`encode_frames` in an output container, tagged as BT.709 in limited range."""
    encoder, options, tag = _ENCODERS[settings.codec]
    stream = container.add_stream(encoder, rate=settings.rate, options={**options, "crf": f"{settings.crf:g}"})
    stream.width, stream.height, stream.pix_fmt = settings.width, settings.height, "yuv420p"
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = _BT709
    context.color_range = _LIMITED_RANGE
    if tag:
        context.codec_tag = tag
    return stream


def encode_frames(container: Any, stream: Any, frames: np.ndarray, settings: VideoSettings) -> None:
    """Adds uint8 frames [F,H,W,3]."""
    for index, image in enumerate(frames):
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = rgb.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_CONVERSION,
        )
        frame.pts, frame.time_base = index, 1 / settings.rate
        container.mux(stream.encode(frame))
