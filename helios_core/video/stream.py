"""A film as an HTTP Live Stream (RFC 8216): a playlist, one header, and one fragmented MP4 for each stored segment.

Nothing is encoded again, and header and parts one after the other are the growing file, to the byte.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av

from ..errors import HeliosError
from .remux import as_fragment


def playlist(header: str, parts: Sequence[str], seconds: Fraction, ended: bool) -> str:
    """The playlist of a film, which players ask for again and again until it has ended.

    Args:
        header: address of what :func:`stream_header` gives.
        parts: addresses of its parts, each ``seconds`` long.
    """
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{math.ceil(seconds)}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{header}"',
    ]
    for part in parts:
        lines += [f"#EXTINF:{float(seconds):.6f},", part]
    return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if ended else []), ""])


def stream_header(segment: bytes) -> tuple[bytes, str]:
    """What a player reads before any part of a film, made from any of its segments; and its media type with the codec.

    Raises:
        HeliosError: a codec that has no such stream.
    """
    with av.open(io.BytesIO(segment)) as file:
        codec = _codec_text(file.streams.video[0].codec_context)
    return as_fragment(segment, 0, Fraction(0))[0], f'video/mp4; codecs="{codec}"'


def stream_part(segment: bytes, number: int, seconds: Fraction) -> bytes:
    """A film's segment ``number``, from 0, at its time; all before it are ``seconds`` long."""
    return as_fragment(segment, number, number * seconds)[1]


def _codec_text(context: Any) -> str:
    """The codec as players are told of it: RFC 6381, and for HEVC ISO/IEC 14496-15, annex E."""
    data = bytes(context.extradata or b"")
    if context.name == "h264" and len(data) > 3:
        return f"avc1.{data[1:4].hex()}"
    if context.name == "hevc" and len(data) > 12:
        return f"hvc1.{_hevc_profile(data)}"
    raise HeliosError(f"The film is coded as {context.name}, which has no live stream: choose h264 or hevc.")


def _hevc_profile(data: bytes) -> str:
    """Profile, compatible profiles, level and constraints of an ``hvcC`` record."""
    space, tier, profile = data[1] >> 6, data[1] >> 5 & 1, data[1] & 31
    compatible = int(f"{int.from_bytes(data[2:6], 'big'):032b}"[::-1], 2)
    named = f"{'ABC'[space - 1] if space else ''}{profile}"
    constraints = [f"{byte:X}" for byte in data[6:12].rstrip(b"\0")]
    return ".".join([named, f"{compatible:X}", f"{'LH'[tier]}{data[12]}", *constraints])
