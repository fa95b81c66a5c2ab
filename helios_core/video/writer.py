"""MP4 files: write them frame by frame in constant memory, and read them back."""

import contextlib
import json
import uuid
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from torch import Tensor

from ..errors import HeliosError, reason

# ITU-T H.273 code points, as the file stores them.
_BT709 = 1
_LIMITED_RANGE = 1

# codec name -> encoder, its options, the MP4 sample entry (None: the container's choice).
# h264 has no B-frames: with them x264's macroblock tree reads memory it has not written, so that the same frames
# give another file now and then, and a resumed take would not equal an uninterrupted one.
# HEVC is tagged hvc1 since Apple's players refuse the default hev1, and has no B-frames since x265 then
# gives the frames of very short clips random decoding times, which the container refuses.
_ENCODERS: dict[str, tuple[str, dict[str, str], str | None]] = {
    "h264": ("libx264", {"bf": "0"}, None),
    "hevc": ("libx265", {"x265-params": "log-level=error:bframes=0"}, "hvc1"),
    "av1": ("libsvtav1", {}, None),
}
CODECS = tuple(_ENCODERS)

# Swscale's faster paths are off by one in places; these flags make the conversion exact and repeatable.
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class VideoWriter:
    """Writes frames to an MP4 as they come; use as a context manager.

    The file is built under a temporary name beside `path`. It takes the name `path` when the block ends
    cleanly and is removed when an exception, an interrupt included, ends it, so `path` is never a partial
    file. Pixels are stored as yuv420p, BT.709, limited range, and tagged so.

    Args:
        path: target; an existing file is replaced.
        width, height: even numbers.
        fps: frames per second.
        codec: one of CODECS.
        crf: constant quality, 0..51 (av1: 0..63); lower is better and larger.
        metadata: stored as one JSON text per key, as ComfyUI does.

    Raises HeliosError for a bad argument, and for a block that wrote no frame.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float | Fraction = 24,
        codec: str = "h264",
        crf: float = 18,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        check_video_options(width, height, fps, codec, crf)
        texts = metadata_texts(metadata or {})
        self.path = Path(path)
        self.frames_written = 0
        self._width, self._height = width, height
        # The suffix stays .mp4: FFmpeg reopens the file by name to move its index to the front.
        self._partial = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex[:8]}.part.mp4")
        rate = Fraction(fps).limit_denominator(1001)
        self._time_base = 1 / rate
        self._container = av.open(
            str(self._partial),
            mode="w",
            format="mp4",
            options={"movflags": "use_metadata_tags+faststart"},
        )
        try:
            self._container.metadata.update(texts)
            self._stream = add_video_stream(self._container, width, height, rate, codec, crf)
            self._container.start_encoding()  # opens the file, so that a bad folder shows here
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise HeliosError(
                    f"The video {self.path} cannot be written ({error.strerror}): choose an existing, writable folder."
                ) from error
            raise

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append uint8 frames [F, H, W, 3]."""
        array = frames.cpu().numpy() if isinstance(frames, Tensor) else frames
        if array.dtype != np.uint8 or array.shape[1:] != (self._height, self._width, 3):
            raise HeliosError(
                f"The frames have shape {list(array.shape)} and dtype {array.dtype}: "
                f"give uint8 [frames, {self._height}, {self._width}, 3]."
            )
        for image in array:
            frame = video_frame(image, self.frames_written, self._time_base)
            self._container.mux(self._stream.encode(frame))
            self.frames_written += 1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            if not self.frames_written:
                raise HeliosError(f"The video {self.path} has no frames: write at least one.")
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._partial.replace(self.path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        with contextlib.suppress(Exception):  # the error that led here is the one to report
            self._container.close()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._partial.unlink()


def add_video_stream(container: Any, width: int, height: int, rate: Fraction, codec: str, crf: float) -> Any:
    """A stream of ``codec`` in an output container, tagged as BT.709 in limited range."""
    encoder, options, tag = _ENCODERS[codec]
    stream = container.add_stream(encoder, rate=rate, options={**options, "crf": f"{crf:g}"})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = _BT709
    context.color_range = _LIMITED_RANGE
    if tag:
        context.codec_tag = tag
    return stream


def video_frame(image: np.ndarray, index: int, time_base: Fraction) -> Any:
    """uint8 [H, W, 3] -> a yuv420p frame at ``index`` frames from the start."""
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame = rgb.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_CONVERSION,
    )
    frame.pts, frame.time_base = index, time_base
    return frame


def read_video(path: str | Path) -> Tensor:
    """All frames of a file, uint8 [F, H, W, 3]; holds them in memory. HeliosError where it cannot."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise HeliosError(f"The file {path} has no picture: give a video file.")
            frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
            stated = container.streams.video[0].frames
    except HeliosError:
        raise
    # Odd metadata is a UnicodeDecodeError.
    except (av.FFmpegError, OSError, ValueError) as error:
        raise HeliosError(f"The video {path} cannot be read ({reason(error)}): give a whole video file.") from error
    if 0 < len(frames) < stated:
        raise HeliosError(f"The video {path} ends after {len(frames)} of {stated} frames: give a whole video file.")
    if not frames:
        raise HeliosError(f"The video {path} has no frames: give a video file.")
    return torch.stack(frames)


def metadata_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {key: json.dumps(value) for key, value in metadata.items()}
    except (TypeError, ValueError) as error:
        raise HeliosError(f"The video metadata is not JSON ({error}): give plain values.") from error


def check_video_options(width: int, height: int, fps: float | Fraction, codec: str, crf: float) -> None:
    if codec not in _ENCODERS:
        raise HeliosError(f"The codec is {codec!r}: choose one of {', '.join(CODECS)}.")
    if _ENCODERS[codec][0] not in av.codec.codecs_available:
        raise HeliosError(
            f"The codec {codec} needs the encoder {_ENCODERS[codec][0]}, which this build of PyAV lacks: "
            "choose another codec or install the PyAV wheel."
        )
    if width < 2 or height < 2 or width % 2 or height % 2:
        nearest = [max(2, size // 2 * 2) for size in (width, height)]
        raise HeliosError(
            f"The video size is {width}x{height}: both must be even, the nearest is {nearest[0]}x{nearest[1]}."
        )
    if not 0 < fps <= 1000:
        raise HeliosError(f"The frame rate is {fps}: give frames per second, above 0 and at most 1000.")
    largest = 63 if codec == "av1" else 51
    if not 0 <= crf <= largest:
        raise HeliosError(f"The crf is {crf}: give a value between 0 and {largest} for {codec}.")
