"""The one reader of video files: frame by frame, so that memory does not grow with the film."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from ..errors import HeliosError, reason

# ITU-T H.273: PQ and HLG, whose coded values are no brightness of an ordinary screen.
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
# Of a frame's usual duration: time stamps of milliseconds alone differ by a twentieth at 50 fps.
UNEVEN = 0.25


class _NoFramesError(HeliosError):
    """A file, or a part of it, without pictures."""


class VideoReader:
    """The pictures of a file, uint8 [H,W,3]; use as a context manager, and iterate once.

    Reading from ``start`` on decodes from the keyframe before it, not from the beginning.

    Args:
        source: a path, or the file's content.
        start, duration: seconds that are read; a duration of 0 reads to the end.

    Attributes:
        width, height: pixels of the first frame, to which later ones are scaled.
        fps: as the file states it; None where it does not.
        frames: of the whole file, as it states them; 0 where it does not.
        hdr: ``PQ`` or ``HLG`` where the file is coded so; None for ordinary video.
        time: seconds into the file of the frame that was read last; None where the file does not say.
        uneven: whether frames follow each other at different distances (variable frame rate), as far as read.

    Raises:
        HeliosError: no video file, no picture in it, damaged, or cut off.
    """

    def __init__(self, source: str | Path | io.BytesIO, start: float = 0.0, duration: float = 0.0):
        self._name = "from memory" if isinstance(source, io.BytesIO) else str(source)
        self._start, self._end = start, start + duration if duration else float("inf")
        with _readable(self._name):
            self._container: Any = av.open(source if isinstance(source, io.BytesIO) else str(source))
        if not self._container.streams.video:
            self._container.close()
            raise HeliosError(f"The file {self._name} has no picture: give a video file.")
        stream = self._container.streams.video[0]
        if stream.codec_context is None:
            self._container.close()
            raise HeliosError(f"The video {self._name} cannot be read (unknown codec): give a whole video file.")
        self.width, self.height = stream.width, stream.height
        self.fps = float(stream.average_rate) if stream.average_rate else None
        self.hdr = HDR_TRANSFERS.get(int(getattr(stream.codec_context, "color_trc", 0) or 0))
        self.frames = stream.frames
        self.uneven = False
        self.time: float | None = None
        if start > 0:
            with _readable(self._name):
                self._container.seek(int(start / stream.time_base), stream=stream)
        self._times: tuple[float, float] | None = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        stream = self._container.streams.video[0]
        decoded = shown = 0
        with _readable(self._name):
            for frame in self._container.decode(stream):
                decoded += 1
                self._look_at(frame.time)
                if frame.time is not None and frame.time < self._start:
                    continue
                if frame.time is not None and frame.time >= self._end:
                    return
                if not shown:
                    self.width, self.height = frame.width, frame.height
                shown += 1
                self.time = frame.time
                yield self._pixels(frame)
        if not self._start and 0 < decoded < stream.frames:
            raise HeliosError(
                f"The video {self._name} ends after {decoded} of {stream.frames} frames: give a whole video file."
            )
        if not shown:
            raise _NoFramesError(f"The video {self._name} has no frames: give a video file.")

    def _pixels(self, frame: Any) -> np.ndarray:
        size = {}
        if (frame.width, frame.height) != (self.width, self.height):
            size = {"width": self.width, "height": self.height}
        return frame.to_ndarray(format="rgb24", **size)

    def _look_at(self, time: float | None) -> None:
        """Compares the distance to the frame before with the one before that."""
        if time is None:
            return
        if self._times is not None:
            before, distance = self._times
            new = time - before
            self.uneven = self.uneven or (distance > 0 and abs(new - distance) > UNEVEN * distance)
            self._times = (time, new)
        else:
            self._times = (time, 0.0)


def read_video(path: str | Path) -> Tensor:
    """All frames of a file, uint8 [F,H,W,3]; holds them in memory. HeliosError where it cannot."""
    with VideoReader(path) as reader:
        return torch.stack([torch.from_numpy(frame) for frame in reader])


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """What PyAV raises within, as one sentence."""
    try:
        yield
    except HeliosError:
        raise
    # Odd metadata is a UnicodeDecodeError.
    except (av.FFmpegError, OSError, ValueError) as error:
        raise HeliosError(f"The video {name} cannot be read ({reason(error)}): give a whole video file.") from error


def read_chunk(
    source: str | Path | io.BytesIO, chunk: int, chunk_frames: int, start: float = 0.0, duration: float = 0.0
) -> np.ndarray:
    """The frames of chunk number ``chunk``, from 0, uint8 [F,H,W,3]; of the film that ``start`` and ``duration`` leave.

    Raises:
        HeliosError: as :class:`VideoReader`, no frame rate, or a chunk beyond the end.
    """
    with VideoReader(source) as reader:
        fps = reader.fps
    if not fps:
        raise HeliosError("The video states no frame rate, which places its chunks: encode it with one.")
    # Half a frame early: times of files are rounded.
    begin, length = start + (chunk * chunk_frames - 0.5) / fps, chunk_frames / fps
    if duration:
        length = min(length, start + duration - begin)
    frames: list[np.ndarray] = []
    if length > 0:
        with (
            VideoReader(source, max(begin, 0.0), length + min(begin, 0.0)) as reader,
            contextlib.suppress(_NoFramesError),
        ):
            frames.extend(reader)
    if not frames:
        raise HeliosError(f"chunk={chunk} is beyond the end of the video; chunks are counted from 0.")
    return np.stack(frames)
