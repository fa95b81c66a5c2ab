"""Encoded pictures copied, packet by packet, from one MP4 into another: nothing is encoded twice."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ..errors import HeliosError
from .audio import SoundTrack

# A fragment says at which time it begins: with `frag_discont` at that of its first packet, which FFmpeg would otherwise
# move to 0. An edit list would move it too, and belongs into the header, which only the first fragment brings.
_FRAGMENT = {
    "movflags": "empty_moov+frag_custom+default_base_moof+frag_discont+skip_trailer",
    "avoid_negative_ts": "make_non_negative",
    "use_editlist": "0",
}


def as_fragment(segment: bytes, number: int, begin: Fraction) -> tuple[bytes, bytes, Fraction]:
    """A segment as fragment ``number``, from 0, of a fragmented MP4.

    The header of the first and then the fragments of a film are its file: each begins where the one before ended.

    Returns:
        The header, as good for every other segment of the film; the fragment; and the second at which it ends.
    """
    file = io.BytesIO()
    options = {**_FRAGMENT, "fragment_index": str(number + 1)}
    with av.open(io.BytesIO(segment)) as source, av.open(file, "w", format="mp4", options=options) as container:
        copy = add_copy(container, source)
        container.start_encoding()
        length = file.tell()
        *_, end = copied(source, copy, container, begin)
    return file.getvalue()[:length], file.getvalue()[length:], end


def finish_video(
    partial: Path,
    target: Path,
    audio: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    sound: Callable[[Any], Any] | None = None,
) -> None:
    """Makes a normal MP4 of a growing one, index in front: players seek badly in fragments, and some refuse them.

    ``sound``, given the container, makes a track like :class:`SoundTrack` in place of that of ``audio``.
    """
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(str(partial)) as source, av.open(str(target), "w", format="mp4", options=options) as container:
        container.metadata.update(texts(metadata or {}))
        copy = add_copy(container, source)
        make = sound if audio is None else functools.partial(SoundTrack, audio=audio)
        track = None if make is None else make(container)
        for end in copied(source, copy, container):
            if track is not None:
                track.write_until(end)
        if track is not None:
            track.finish()


def add_copy(container: Any, source: Any) -> Any:
    """A stream of ``container`` for the packets of the pictures in ``source``."""
    stream = source.streams.video[0]
    copy = container.add_stream_from_template(stream)
    copy.codec_context.codec_tag = stream.codec_context.codec_tag  # hvc1, else the muxer writes hev1
    return copy


def copied(source: Any, copy: Any, container: Any, begin: Fraction = Fraction(0)) -> Iterator[Fraction]:
    """Writes every packet ``begin`` seconds later, and yields when its picture ends."""
    for packet in source.demux(source.streams.video[0]):
        if packet.dts is None:  # the end of the file
            continue
        shift = int(begin / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        end = (packet.pts + packet.duration) * packet.time_base
        packet.stream = copy
        container.mux(packet)
        yield end


def texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {key: json.dumps(value) for key, value in metadata.items()}
    except (TypeError, ValueError) as error:
        raise HeliosError(f"The video metadata is not JSON ({error}): give plain values.") from error
