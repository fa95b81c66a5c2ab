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
from torch import Tensor

from ..errors import HeliosError
from .reader import VideoReader
from .segments import VideoSettings, add_video_stream, encode_frames


class VideoWriter:
    """Writes frames to an MP4 as they come; use as a context manager.

    The file is built under a temporary name beside `path`. It takes the name `path` when the block ends
    cleanly and is removed when an exception, an interrupt included, ends it, so `path` is never a partial
    file. Pixels are stored as yuv420p, BT.709, limited range, and tagged so.

    Args:
        path: target; an existing file is replaced.
        width, height, fps, codec, crf: as for :class:`VideoSettings`.
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
        self._settings = VideoSettings(width, height, fps, codec, crf)
        texts = metadata_texts(metadata or {})
        self.path = Path(path)
        self.frames_written = 0
        # The suffix stays .mp4: FFmpeg reopens the file by name to move its index to the front.
        self._partial = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex[:8]}.part.mp4")
        options = {"movflags": "use_metadata_tags+faststart"}
        self._container = av.open(str(self._partial), mode="w", format="mp4", options=options)
        try:
            self._container.metadata.update(texts)
            self._stream = add_video_stream(self._container, self._settings)
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
        width, height = self._settings.width, self._settings.height
        if array.dtype != np.uint8 or array.shape[1:] != (height, width, 3):
            raise HeliosError(
                f"The frames have shape {list(array.shape)} and dtype {array.dtype}: "
                f"give uint8 [frames, {height}, {width}, 3]."
            )
        encode_frames(self._container, self._stream, array, self._settings, self.frames_written)
        self.frames_written += len(array)

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


def read_video(path: str | Path) -> Tensor:
    """All frames of a file, uint8 [F, H, W, 3]; holds them in memory. HeliosError where it cannot."""
    with VideoReader(path) as reader:
        return torch.stack([torch.from_numpy(frame) for frame in reader])


def metadata_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {key: json.dumps(value) for key, value in metadata.items()}
    except (TypeError, ValueError) as error:
        raise HeliosError(f"The video metadata is not JSON ({error}): give plain values.") from error
