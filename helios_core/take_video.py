"""The video of a running take: a file that is playable at any moment, and a normal MP4 at the end.

Every chunk is encoded on its own (its first frame a key frame) into a fragmented MP4, its **segment**. A fragment
says at which time it begins, so appending a segment to the growing file is one write of its bytes with that time
changed: nothing is encoded twice, the file holds every finished chunk whatever happens to the process, and a
segment from an earlier run is as good as a new one, which is why a resumed take has the frames of an
uninterrupted one. Players seek badly in fragments and some refuse them, so the finished take is copied, packet by
packet, into an MP4 with its index in front.

A chunk that was killed before its segment was stored is decoded and encoded again. x264 then gives the same bytes;
x265 reads memory that it has not written, and may code a block of that one chunk differently.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import struct
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from torch import Tensor

from .errors import HeliosError
from .fingerprint import fingerprint
from .history import CHUNK_FRAMES
from .store import ChunkStore, sync_folder
from .video import add_video_stream, check_video_options, metadata_texts, video_frame

PARTIAL_SUFFIX = ".partial.mp4"
# Ticks per frame are whole numbers at every frame rate.
TICKS = 100
WAITING_CHUNKS = 1
AUDIO_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
AAC_FRAME = 1024
# Windows locks bytes, so that nobody else reads them: one far behind the end of any file harms no player.
_LOCKED_BYTE = 2**40

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoSettings:
    """Size in pixels, frames per second, codec of ``video.CODECS`` and crf (lower is better and larger)."""

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

    def segment_key(self, chunk_key: str, vae: str) -> str:
        """Names a chunk's segment. Another encoder version counts as other settings: segments must fit together."""
        return fingerprint(chunk_key, vae, self, av.library_versions)


def encode_segment(frames: Tensor, settings: VideoSettings) -> bytes:
    """One chunk's uint8 frames [F,H,W,3] as a fragmented MP4 that begins at time 0."""
    rate = settings.rate
    file = io.BytesIO()
    options = {
        "movflags": "frag_custom+empty_moov+default_base_moof",
        "video_track_timescale": str(rate.numerator * TICKS),
    }
    with av.open(file, "w", format="mp4", options=options) as container:
        stream = add_video_stream(container, settings.width, settings.height, rate, settings.codec, settings.crf)
        for index, image in enumerate(frames.cpu().numpy()):
            container.mux(stream.encode(video_frame(image, index, 1 / rate)))
        container.mux(stream.encode(None))
    return file.getvalue()


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, box with its header) of the boxes at the top level of an MP4."""
    position = 0
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position : position + size]
        position += size


def _moved(fragment: bytes, ticks: int, number: int) -> bytes:
    """A ``moof`` box that begins ``ticks`` later and is fragment ``number`` of its file."""
    box = bytearray(fragment)
    sequence, time = box.index(b"mfhd") + 8, box.index(b"tfdt") + 8
    struct.pack_into(">I", box, sequence, number)
    struct.pack_into(">Q", box, time, struct.unpack_from(">Q", box, time)[0] + ticks)
    return bytes(box)


class GrowingVideo:
    """A fragmented MP4 that grows by one chunk at a time; each is on disk when :meth:`append` returns.

    An existing file, left by an earlier run, is kept as far as its bytes are those that would be appended, so it
    stays playable while the take catches up with it. A file that another process is writing is left alone: the
    name then gets a number.
    """

    def __init__(self, path: Path):
        self._file, self.path = _open_exclusively(path)
        self._position = 0
        self.chunks = 0

    def append(self, segment: bytes, settings: VideoSettings) -> None:
        """Adds one chunk.

        Raises:
            OSError: the disk is full; the file keeps the chunks before.
        """
        ticks = self.chunks * CHUNK_FRAMES * settings.rate.denominator * TICKS
        data = b""
        for kind, box in _boxes(segment):
            if kind in (b"ftyp", b"moov") and not self.chunks:
                data += box
            elif kind == b"moof":
                data += _moved(box, ticks, self.chunks + 1)
            elif kind == b"mdat":
                data += box
        self._file.seek(self._position)
        if self._file.read(len(data)) != data:
            self._write(data)
        self._position += len(data)
        self.chunks += 1

    def _write(self, data: bytes) -> None:
        self._file.truncate(self._position)
        self._file.seek(self._position)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
            if not self.chunks:
                sync_folder(self.path.parent)
        except BaseException:
            # What was written of a chunk is no fragment; without it the file plays to its end.
            self._file.truncate(self._position)
            raise

    def cut(self) -> None:
        """Removes what an earlier, longer run left behind the chunks of this one."""
        self._file.truncate(self._position)

    def close(self) -> None:
        self._file.close()


def _open_exclusively(path: Path) -> tuple[Any, Path]:
    name = path.name.removesuffix(PARTIAL_SUFFIX)
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{name}-{number}{PARTIAL_SUFFIX}")
        candidate.parent.mkdir(parents=True, exist_ok=True)
        # A link under the name would have another file of this machine overwritten.
        if candidate.is_symlink():
            continue
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        # Unbuffered: what a write has returned from is in the system's hands when the process is killed.
        file = os.fdopen(os.open(candidate, flags, 0o666), "r+b", buffering=0)
        if _locked(file):
            # The owner before may have removed the name between opening and locking.
            with contextlib.suppress(OSError):
                if os.name == "nt" or candidate.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file, candidate
        file.close()
    raise HeliosError(
        f"{path} and its numbered siblings are all links, or being written by other processes; wait for one."
    )


def _locked(file: Any) -> bool:
    """Takes the lock that ends with the process, however it ends; True too where the file system has none."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("The folder of %s has no file locks (%s): render there from one process.", file.name, error)
    return True


class TakeVideo:
    """Encodes a take's chunks on a thread of its own, in order; use as a context manager.

    At most one chunk waits while another is encoded: :meth:`add` blocks until there is room. Leaving the block,
    by an exception or an interrupt too, encodes what waits and closes the file, which stays on disk as
    :attr:`partial`.

    Args:
        path: the growing file, ``<name>.partial.mp4``.
        vae: fingerprint of what decoded the frames; part of the segments' names in ``store``.
        resume: False encodes chunks anew that have a segment in the store.
        on_chunk: called on the thread with the position of each chunk, from 0, that is now on disk, and the file.
    """

    def __init__(
        self,
        path: Path,
        settings: VideoSettings,
        store: ChunkStore,
        vae: str = "",
        resume: bool = True,
        on_chunk: Callable[[int, Path], None] | None = None,
    ):
        self.settings = settings
        self._store, self._vae, self._resume, self._on_chunk = store, vae, resume, on_chunk
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[str, bytes | Tensor] | None] = queue.Queue(WAITING_CHUNKS)
        with self._reported(path):
            self._growing = GrowingVideo(path)
        self._thread = threading.Thread(target=self._run, name="helios-video", daemon=True)
        self._thread.start()

    @property
    def partial(self) -> Path:
        """The growing file. It is this take's own, with a number where another process writes the asked-for one."""
        return self._growing.path

    def add(self, chunk_key: str, decode: Callable[[], Tensor]) -> Tensor | None:
        """Appends the take's next chunk; ``decode`` gives its uint8 frames [33,H,W,3] if no segment is stored.

        Returns the frames where they were decoded.

        Raises:
            HeliosError: an earlier chunk could not be encoded or written.
        """
        key = self.settings.segment_key(chunk_key, self._vae)
        segment = self._store.get_segment(key) if self._resume else None
        frames = decode() if segment is None else None
        item = (key, segment if frames is None else frames)
        while True:
            self._raise_error()
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)  # type: ignore[arg-type]
                return frames

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._encode(*item)
                except BaseException as error:
                    self._error = error
            item = None

    def _encode(self, key: str, content: bytes | Tensor) -> None:
        segment = content if isinstance(content, bytes) else encode_segment(content, self.settings)
        with self._reported(self.partial):
            self._growing.append(segment, self.settings)
        if not isinstance(content, bytes):
            self._store.put_segment(key, segment)
        if self._on_chunk is not None:
            self._on_chunk(self._growing.chunks - 1, self.partial)

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
                path = publish(temporary)
                sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
            # Removed while it is still locked, or another process could take it over in between; Windows removes
            # closed files only, and none that is open in a player.
            if os.name == "nt":
                self._growing.close()
            with contextlib.suppress(OSError):
                self.partial.unlink()
            self._growing.close()
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
        if not self._growing.chunks:
            with contextlib.suppress(OSError):
                if not self.partial.stat().st_size:
                    self.partial.unlink()


def finish_video(
    partial: Path, target: Path, audio: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None
) -> None:
    """Copies a growing video's packets into a normal MP4, index in front, with an optional AAC track."""
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(str(partial)) as source, av.open(str(target), "w", format="mp4", options=options) as container:
        container.metadata.update(metadata_texts(metadata or {}))
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        copy.codec_context.codec_tag = stream.codec_context.codec_tag  # hvc1, else the muxer writes hev1
        sound = None if audio is None else _Sound(container, audio)
        first = None
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            # Fragments cannot begin before 0, so with B-frames every frame is shown some frames late there.
            first = packet.pts if first is None else first
            packet.pts, packet.dts = packet.pts - first, packet.dts - first
            end = (packet.pts + packet.duration) * packet.time_base
            packet.stream = copy
            container.mux(packet)
            if sound is not None:
                sound.write_until(end)
        if sound is not None:
            sound.finish()
    # The name is about to change to the final one, which must never hold less than everything.
    with target.open("r+b") as file:
        os.fsync(file.fileno())
    sync_folder(target.parent)


class _Sound:
    """An AAC track, encoded as far as the picture has come so that neither waits for the other in memory."""

    def __init__(self, container: Any, audio: Mapping[str, Any]):
        self._waveform, self._rate = check_audio(audio), int(audio["sample_rate"])
        self._container = container
        self._layout = AUDIO_LAYOUTS[self._waveform.shape[0]]
        self._stream = container.add_stream("aac", rate=self._rate, layout=self._layout)
        self._done = 0

    def write_until(self, seconds: Fraction) -> None:
        end = min(round(seconds * self._rate), self._waveform.shape[1])
        while self._done < end:
            stop = min(self._done + AAC_FRAME, end)
            samples = np.ascontiguousarray(self._waveform[:, self._done : stop].float().cpu().numpy())
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._done, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._done = stop

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


def check_audio(audio: Mapping[str, Any]) -> Tensor:
    """The samples [C,S] of an AUDIO's first clip.

    Raises:
        HeliosError: a channel count or a sample rate that AAC does not have.
    """
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    channels = waveform.shape[1] if waveform.ndim == 3 else 0
    if channels not in AUDIO_LAYOUTS or not waveform.shape[0]:
        raise HeliosError(
            f"audio has shape {list(waveform.shape)}; give [1, channels, samples] with 1, 2 or 6 channels."
        )
    rates = sorted(av.codec.Codec("aac", "w").audio_rates or ())
    if rates and rate not in rates:
        nearest = min(rates, key=lambda known: abs(known - rate))
        raise HeliosError(f"audio has sample_rate={rate}, which AAC does not support; resample it to {nearest}.")
    return waveform[0]
