"""The video of a running take: encoded as its chunks come, kept in the store, playable at every moment."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import av
from torch import Tensor

from ..errors import HeliosError
from ..video.growing import GrowingVideo
from ..video.remux import finish_video
from ..video.segments import VideoSettings, encode_segment
from .fingerprint import fingerprint
from .store import ChunkStore, sync_folder

WAITING_CHUNKS = 1
Frames: TypeAlias = Tensor | Future[Tensor]
"""One chunk's uint8 frames [33,H,W,3], which may still be on their way."""


def segment_key(chunk_key: str, vae: str, settings: VideoSettings) -> str:
    """Names a chunk's segment. Another encoder version counts as other settings: segments must fit together.

    ``vae`` is the fingerprint of what decodes the chunk.
    """
    return fingerprint(chunk_key, vae, settings, av.library_versions)


class TakeVideo:
    """Encodes a take's chunks on a thread of its own, in order; use as a context manager.

    At most one chunk waits while another is encoded: :meth:`add` blocks until there is room. Leaving the block,
    by an exception or an interrupt too, encodes what waits and closes the file, which stays on disk as
    :attr:`partial`.

    Args:
        path: the growing file, ``<name>.partial.mp4``.
        vae: fingerprint of what decoded the frames; part of the segments' names in ``store``.
        resume: False encodes chunks anew that have a segment in the store.
        on_chunk: called on the thread with the segment key of each chunk that is now on disk, and the file.
    """

    def __init__(
        self,
        path: Path,
        settings: VideoSettings,
        store: ChunkStore,
        vae: str = "",
        resume: bool = True,
        on_chunk: Callable[[str, Path], None] | None = None,
    ):
        self.settings = settings
        self._store, self._vae, self._resume, self._on_chunk = store, vae, resume, on_chunk
        self._keys: list[str] = []
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[str, bytes | Frames] | int | None] = queue.Queue(WAITING_CHUNKS)
        self.count = 0  # chunks in the video and on their way into it
        with self._reported(path):
            self._growing = GrowingVideo(path)
        self._thread = threading.Thread(target=self._run, name="helios-video", daemon=True)
        self._thread.start()

    @property
    def partial(self) -> Path:
        """The growing file. It is this take's own, with a number where another process writes the asked-for one."""
        return self._growing.path

    def add(self, chunk_key: str, decode: Callable[[], Frames]) -> Frames | None:
        """Appends the take's next chunk; ``decode`` gives its frames if no segment is stored.

        Returns the frames where they were decoded.

        Raises:
            HeliosError: an earlier chunk could not be encoded or written.
        """
        key = segment_key(chunk_key, self._vae, self.settings)
        segment = self._store.get_segment(key) if self._resume else None
        frames = decode() if segment is None else None
        self._put((key, segment if frames is None else frames))  # type: ignore[arg-type]
        self.count += 1
        return frames

    def back_to(self, count: int) -> None:
        """Removes all but the first ``count`` chunks, where there are more. Raises as :meth:`add`."""
        if count < self.count:
            self._put(count)
            self.count = count

    def _put(self, item: tuple[str, bytes | Frames] | int) -> None:
        while True:
            self._raise_error()
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    if isinstance(item, int):
                        self._growing.back_to(item)
                        del self._keys[item:]
                    else:
                        self._encode(*item)
                except BaseException as error:
                    self._error = error
            item = None

    def _encode(self, key: str, content: bytes | Frames) -> None:
        if isinstance(content, Future):
            content = content.result()
        segment = content if isinstance(content, bytes) else encode_segment(content, self.settings)
        with self._reported(self.partial):
            self._growing.append(segment)
            if self._growing.chunks == 1:
                sync_folder(self.partial.parent)
        if not isinstance(content, bytes):
            self._store.put_segment(key, segment)
        self._keys.append(key)
        self._store.touch(self._keys)
        if self._on_chunk is not None:
            self._on_chunk(key, self.partial)

    def _raise_error(self) -> None:
        if isinstance(self._error, HeliosError):
            raise self._error
        if self._error is not None:
            raise HeliosError(
                f"the video's {self.settings.codec} encoder failed ({self._error}); choose another codec and run "
                "again: finished chunks are kept."
            ) from self._error

    def finish(
        self,
        publish: Callable[[Path], Path],
        audio: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Path:
        """Waits for the last chunk, writes the finished MP4 and removes the growing file.

        Args:
            publish: given the finished file under a temporary name, renames it and returns its name.
            audio: ComfyUI's AUDIO, ``waveform`` [B,C,S] and ``sample_rate``; cut to the video's length.
            metadata: stored as one JSON text per key.
        """
        self._stop()
        self._raise_error()
        temporary = self.partial.with_name(f".{uuid.uuid4().hex[:8]}.part.mp4")
        with self._reported(temporary):
            self._growing.cut()
            try:
                finish_video(self.partial, temporary, audio, metadata)
                # The name is about to change to the final one, which must never hold less than everything.
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())
                sync_folder(temporary.parent)
                path = publish(temporary)
                sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
            self._growing.close(remove=True)
        return path

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    @contextlib.contextmanager
    def _reported(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HeliosError(
                f"video {path} cannot be written ({error.strerror or error}); free space there or choose another "
                "folder, then run again: finished chunks are kept."
            ) from error

    def __enter__(self) -> TakeVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        self._growing.close()
