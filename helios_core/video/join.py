"""Films joined to one file: encoded pictures are copied where the parts fit each other, and encoded anew elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from ..errors import HeliosError
from .audio import SoundTrack
from .reader import VideoReader
from .remux import add_copy, copied, texts
from .segments import VideoSettings, encode_segment

Source = str | Path | io.BytesIO
# Encoded at once; one chunk of Helios.
BATCH = 33


@dataclass(frozen=True)
class Part:
    """One part of a film.

    Attributes:
        frames: begins to read it: uint8 [H,W,3], one after the other.
        width, height: pixels.
        fps: None where frames alone are known.
        file: what its encoded pictures can be copied from; None for frames, and for a piece of a file.
    """

    frames: Callable[[], Iterable[np.ndarray]]
    width: int
    height: int
    fps: float | None = None
    file: Source | None = None


def file_part(source: Source, start: float = 0.0, duration: float = 0.0) -> Part:
    """A video file, or ``duration`` seconds of it from ``start`` on; a duration of 0 reads to its end.

    Raises:
        HeliosError: it cannot be read.
    """

    def frames() -> Iterator[np.ndarray]:
        with VideoReader(_rewound(source), start, duration) as reader:
            yield from reader

    with VideoReader(_rewound(source)) as reader:
        whole = None if start or duration else source
        return Part(frames, reader.width, reader.height, reader.fps, whole)


def settings_for(parts: Sequence[Part], fps: float, codec: str, crf: float) -> VideoSettings:
    """How the joined film is encoded: in the size of the first part, and the frame rate of the first file.

    Raises:
        HeliosError: a part has another size or frame rate.
    """
    if not parts:
        raise HeliosError("no part is connected; connect at least one video.")
    known = [part.fps for part in parts if part.fps is not None]
    settings = VideoSettings(parts[0].width, parts[0].height, known[0] if known else fps, codec, crf)
    for number, part in enumerate(parts, start=1):
        if (part.width, part.height) != (settings.width, settings.height):
            raise HeliosError(
                f"part {number} is {part.width}x{part.height} and part 1 is {settings.width}x{settings.height}; scale "
                "one to the size of the other."
            )
        if part.fps is not None and replace(settings, fps=part.fps).rate != settings.rate:
            raise HeliosError(
                f"part {number} has {part.fps:g} frames per second and another part {settings.fps:g}; convert one."
            )
    return settings


def join_parts(
    parts: Sequence[Part],
    target: Path,
    settings: VideoSettings,
    audio: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[bool]:
    """Writes the parts one after the other as one MP4, in constant memory.

    Returns:
        For each part whether its encoded pictures were copied.

    Raises:
        HeliosError: a part cannot be read.
    """
    codings = [None if part.file is None else _coding(part.file) for part in parts]
    wanted = codings[0]
    if wanted is None or any(coding != wanted for coding in codings):
        blank = torch.zeros(1, settings.height, settings.width, 3, dtype=torch.uint8)
        wanted = _coding(io.BytesIO(encode_segment(blank, settings)))
    is_copied = [coding == wanted for coding in codings]
    begin, sound = Fraction(0), None
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(str(target), "w", format="mp4", options=options) as container:
        container.metadata.update(texts(metadata or {}))
        copy: Any = None
        for part, whole in zip(parts, is_copied, strict=True):
            for piece in [part.file] if whole else _encoded(part.frames(), settings):
                with av.open(_openable(piece)) as source:
                    if copy is None:
                        copy = add_copy(container, source)
                        sound = None if audio is None else SoundTrack(container, audio)
                    for end in copied(source, copy, container, begin):
                        if sound is not None:
                            sound.write_until(end)
                    begin = end
        if sound is not None:
            sound.finish()
    return is_copied


def _coding(source: Source) -> tuple[Any, ...] | None:
    """What two files must have in common to follow each other; None where pictures are shown in another order."""
    with av.open(_openable(source)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        coding = (context.name, context.width, context.height, context.pix_fmt, bytes(context.extradata or b""))
        packets = (packet for packet in container.demux(stream) if packet.dts is not None)
        return coding if all(packet.pts == packet.dts and packet.duration for packet in packets) else None


def _encoded(frames: Iterable[np.ndarray], settings: VideoSettings) -> Iterator[io.BytesIO]:
    """Frames as small MP4s that follow each other."""
    rest = iter(frames)
    while batch := list(islice(rest, BATCH)):
        yield io.BytesIO(encode_segment(torch.from_numpy(np.stack(batch)), settings))


def _rewound(source: Source) -> Source:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    return source


def _openable(source: Source | None) -> Any:
    return _rewound(source) if isinstance(source, io.BytesIO) else str(source)
