"""A take as a live stream, which mpv, VLC, ffplay and the film strip play while it grows (RFC 8216).

- ``/helios/takes/{id}/stream.m3u8``: the playlist. It grows with the take and ends with it; ask again for more.
- ``/helios/takes/{id}/stream/{key}.mp4``: the header. ``.../{number}-{key}.m4s``: part ``number`` of the film, from 0,
  whose encoded pictures the store keeps as ``key``: another version of a chunk has another address.

They hold the picture; a film's sound is added when its file is written. What is not there answers 404 and a malformed
address 400, with ``{"error": sentence}``. Only what a take names can be reached.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from aiohttp import web

from ...helios_core.errors import HeliosError
from ...helios_core.variants import CHUNK_FRAMES
from ...helios_core.video.segments import exact_rate
from ...helios_core.video.stream import playlist, stream_header, stream_part
from .routes import FOREVER, IDENTIFIER, NO_BYTES, TakeParts, find_take, refused, refused_identifier

NAME = re.compile(r"(?:(0|[1-9][0-9]{0,8})-)?([0-9a-f]{1,128})(\.mp4|\.m4s)")
PLAYLIST_TYPE, PART_TYPE = "application/vnd.apple.mpegurl", "video/iso.segment"


class _MissingError(HeliosError):
    """What a player asks for is not there, or not yet."""


def register_stream_routes(server: Any) -> None:
    """Adds the routes to core's server; before those of a take's chunks, whose addresses are as long."""
    server.routes.get("/helios/takes/{take}/stream.m3u8")(_playlist)
    server.routes.get("/helios/takes/{take}/stream/{name}")(_part)


async def _playlist(request: web.Request) -> web.Response:
    identifier = request.match_info["take"]
    if not IDENTIFIER.fullmatch(identifier):
        return refused_identifier(identifier)
    try:
        data = await asyncio.to_thread(_playlist_of, identifier)
    except _MissingError as error:
        return refused(str(error), 404)
    etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return _content(request, data, etag, PLAYLIST_TYPE, {"Cache-Control": "no-cache"})


async def _part(request: web.Request) -> web.Response:
    identifier, name = request.match_info["take"], NAME.fullmatch(request.match_info["name"])
    if not IDENTIFIER.fullmatch(identifier) or name is None or (name[1] is None) != (name[3] == ".mp4"):
        return refused(f"{request.path!r:.120} is no part of a stream; ask for one that a take's stream.m3u8 lists.")
    try:
        data, kind = await asyncio.to_thread(_part_of, identifier, name[1] and int(name[1]), name[2])
    except _MissingError as error:
        return refused(str(error), 404)
    except HeliosError as error:
        return refused(str(error), 415)
    return _content(request, data, name[2], kind, FOREVER)


def _playlist_of(identifier: str) -> bytes:
    take = _found(identifier)
    parts = list(_unbroken(take))
    if not parts:
        raise _MissingError(f"take {identifier} has no chunk to play; ask again when its first one is finished.")
    names = [f"stream/{number}-{key}.m4s" for number, key in enumerate(parts)]
    return playlist(f"stream/{parts[0]}.mp4", names, _seconds(take), not take.running).encode()


def _part_of(identifier: str, number: int | None, key: str) -> tuple[bytes, str]:
    """The header where ``number`` is None; and its media type."""
    take = _found(identifier)
    place = take.first_chunk + (number or 0)
    # A player goes on for a moment with what it was told of chunks that were made again since.
    is_named = take.segments().get(place) == key or (place, key) in take.discarded
    segment = take.store.get_segment(key) if take.store is not None and is_named else None
    if segment is None:
        raise _MissingError(f"take {identifier} has no such part now; ask its stream.m3u8 for those it has.")
    return stream_header(segment) if number is None else (stream_part(segment, number, _seconds(take)), PART_TYPE)


def _found(identifier: str) -> TakeParts:
    take = find_take(identifier)
    if take is None:
        raise _MissingError(f"no take has the id {identifier}; ask for one that /helios/takes lists.")
    return take


def _unbroken(take: TakeParts) -> Iterator[str]:
    """The keys of the take's encoded chunks from its first on, as far as none is missing."""
    segments, chunk = take.segments(), take.first_chunk
    while take.store is not None and chunk in segments and take.store.segment_file(segments[chunk]).is_file():
        yield segments[chunk]
        chunk += 1


def _seconds(take: TakeParts) -> Fraction:
    """The exact length of a part."""
    return CHUNK_FRAMES / exact_rate(take.fps)


def _content(request: web.Request, data: bytes, etag: str, kind: str, caching: dict[str, str]) -> web.Response:
    """``data``, or the range of it that is asked for; nothing where it is known already."""
    headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **caching}
    if any(known.value in (etag, "*") for known in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = kind
    if "Range" not in request.headers:
        return web.Response(body=data, headers=headers)
    start, stop = _range(request, len(data))
    if start >= stop:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:stop], headers=headers)


def _range(request: web.Request, length: int) -> tuple[int, int]:
    """The bytes that are asked for, from and to; (0, 0) where there are none, or nothing is understood."""
    if NO_BYTES.fullmatch(request.headers["Range"]):
        return 0, 0
    try:
        return request.http_range.indices(length)[:2]
    except ValueError:
        return 0, 0
