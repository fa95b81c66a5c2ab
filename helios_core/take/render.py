"""A film to a file, chunk by chunk: sampled or found, decoded, encoded, kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..errors import HeliosError
from ..video.segments import VideoSettings, encode_segment
from .chunk import Chunk
from .history import History
from .take import Take
from .video import Frames, TakeVideo, segment_key


class FilmObserver(Protocol):
    """What a front end is told while its film is rendered."""

    def decoding(self, chunk: Chunk) -> None:
        """The chunk's latents are there."""

    def decoded(self, chunk: Chunk, frames: Tensor | None) -> None:
        """The chunk's frames, uint8 [33,H,W,3], wait to be encoded; None where its encoded part was stored, or its
        frames are still on their way."""

    def on_disk(self, index: int, reused: bool, segment: str) -> None:
        """The chunk is in the growing file, its encoded part stored as ``segment``; called on the video's thread."""

    def writing(self) -> None:
        """All chunks are there; the finished file is being written."""


def render_film(
    chunks: Iterable[Chunk],
    take: Take,
    growing: Path,
    settings: VideoSettings,
    vae: str,
    decode: Callable[[Tensor], Frames],
    publish: Callable[[Path], Path],
    observer: FilmObserver,
    audio: Mapping[str, Any] | None = None,
    metadata: Callable[[], Mapping[str, Any]] = dict,
    finish_always: bool = False,
) -> tuple[Path, History]:
    """Renders ``chunks``, which ``take`` keeps, into one MP4 in constant memory.

    Args:
        growing: the file that is playable while it renders, ``<name>.partial.mp4``.
        vae: fingerprint of what decodes.
        decode: a chunk's latents -> uint8 frames [33,H,W,3] on the CPU, now or later.
        publish: given the finished file under a temporary name, renames it and returns its name.
        audio, metadata: as for :meth:`TakeVideo.finish`, the latter asked for when all chunks are there.
        finish_always: writes the finished file of what there is also where an error or an interrupt ended the film.

    Returns:
        The file, and the history after its last chunk.

    Raises:
        HeliosError: a disk is full, the encoder failed, or a chunk cannot be made; finished chunks are kept.
    """
    begun: dict[str, tuple[str, int, bool]] = {}  # names alone: tensors would add up to the film's length

    def on_disk(segment: str, video: Path) -> None:
        key, index, reused = begun[segment]
        if take.in_video(key, video, segment):
            observer.on_disk(index, reused, segment)

    def finish() -> Path:
        video.back_to(take.count)
        observer.writing()
        return video.finish(publish, audio, metadata())

    with take, TakeVideo(growing, settings, take.store, vae, take.resume, on_disk) as video:
        first: int | None = None
        try:
            for chunk in chunks:
                first = chunk.index if first is None else first
                video.back_to(chunk.index - first)
                begun[segment_key(chunk.key, vae, settings)] = (chunk.key, chunk.index, chunk.reused)
                observer.decoding(chunk)
                frames = video.add(chunk.key, partial(decode, chunk.latents))
                observer.decoded(chunk, None if isinstance(frames, Future) else frames)
        except BaseException:
            if finish_always and video.count:
                with contextlib.suppress(Exception):  # what ended the film is what is told
                    take.end("interrupted", finish())
            raise
        history = take.history
        if history is None:
            raise HeliosError("a film needs at least one chunk.")
        path = finish()
        take.end("finished", path)
    return path, history


def render_to_store(
    chunks: Iterable[Chunk],
    take: Take,
    settings: VideoSettings,
    vae: str,
    decode: Callable[[Tensor], Tensor],
    observer: FilmObserver,
) -> tuple[Path, History]:
    """Renders ``chunks`` into the store alone: each chunk and its encoded part, and no film.

    Args:
        vae, decode: as for :func:`render_film`.

    Returns:
        The last chunk's part in the store, and the history after it.

    Raises:
        HeliosError: as for :func:`render_film`.
    """
    key, history = "", None
    with take:
        for chunk in chunks:
            key = segment_key(chunk.key, vae, settings)
            observer.decoding(chunk)
            frames = None
            if not take.resume or take.store.get_segment(key) is None:
                frames = decode(chunk.latents)
                take.store.put_segment(key, encode_segment(frames, settings))
            take.in_video(chunk.key, None, key)
            observer.decoded(chunk, frames)
            observer.on_disk(chunk.index, chunk.reused, key)
            history = chunk.history
        take.end("finished")
    if history is None:
        raise HeliosError("a film needs at least one chunk.")
    return take.store.segment_file(key), history
