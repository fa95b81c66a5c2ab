"""GET routes of the film strip: the state of takes, and a chunk's moving thumbnail or its part of the film.

- ``/helios/takes``: ``{"version", "takes": [TakeState]}`` (see ``events.py``), oldest first.
- ``/helios/takes/{id}/{chunk}/thumbnail``: animated WebP. ``.../video``: MP4 of that chunk alone.

What is not there (a chunk that is not finished, a store that was emptied, a take of an earlier process) answers 204
without content: pages ask for what may have gone, which is no error. A malformed address answers 400 with
``{"error": sentence}``. Nothing but segments that a take of this process named can be reached.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from typing import Any

from aiohttp import web

from .events import VERSION, TakeFeed, feeds
from .thumbnails import segment_thumbnail

IDENTIFIER = re.compile(r"[0-9a-f]{32}")
NO_BYTES = re.compile(r"(?i:bytes)=-0+")
CHUNK = re.compile(r"[0-9]{1,9}")
TYPES = {"thumbnail": "image/webp", "video": "video/mp4"}
# A finished chunk of a take never changes.
FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}
GONE = {"Cache-Control": "no-store"}
CACHED_THUMBNAILS = 256


class TakeRoutes:
    """Handlers with a small cache of thumbnails, which are made when a page first asks."""

    def __init__(self) -> None:
        self._thumbnails: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._at_work = asyncio.Semaphore(1)  # rendering needs the processor more than pages do

    def register(self, routes: web.RouteTableDef) -> None:
        routes.get("/helios/takes")(self.takes)
        routes.get("/helios/takes/{take}/{chunk}/{part}")(self.part)

    async def takes(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION, "takes": feeds().states()}, headers=GONE)

    async def part(self, request: web.Request) -> web.Response:
        take, chunk, part = (request.match_info[name] for name in ("take", "chunk", "part"))
        if not IDENTIFIER.fullmatch(take) or not CHUNK.fullmatch(chunk) or part not in TYPES:
            return refused(
                f"{request.path!r:.120} is no part of a take; ask for /helios/takes/<id>/<chunk>/thumbnail or video."
            )
        feed = feeds().get(take)
        data = None if feed is None else await self._data(feed, int(chunk), part)
        if data is None:
            return web.Response(status=204, headers=GONE)
        return ranged(request, data, TYPES[part])

    async def _data(self, feed: TakeFeed, chunk: int, part: str) -> bytes | None:
        if part == "video":
            return await asyncio.to_thread(feed.segment, chunk)
        made = feed.thumbnail(chunk) or self._thumbnails.get((feed.id, chunk))
        if made is not None:
            return made
        async with self._at_work:
            made = await asyncio.to_thread(_made_from_segment, feed, chunk)
        if made is not None:
            self._thumbnails[feed.id, chunk] = made
            while len(self._thumbnails) > CACHED_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return made


def _made_from_segment(feed: TakeFeed, chunk: int) -> bytes | None:
    segment = feed.segment(chunk)
    return None if segment is None else segment_thumbnail(segment, feed.progress.fps)


def ranged(request: web.Request, data: bytes, content_type: str) -> web.Response:
    """All of ``data``, or the range that a player asks for when it seeks."""
    headers = {**FOREVER, "Accept-Ranges": "bytes"}
    try:
        wanted = request.http_range
        # The last no bytes, which aiohttp takes for all of them.
        if NO_BYTES.fullmatch(request.headers.get("Range", "")):
            raise ValueError
    except ValueError:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    if wanted.start is None and wanted.stop is None:
        return web.Response(body=data, content_type=content_type, headers=headers)
    start, stop, _ = slice(wanted.start, wanted.stop).indices(len(data))
    if start >= stop:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:stop], content_type=content_type, headers=headers)


def refused(sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=400)


def register_routes(server: Any) -> None:
    """Adds the routes to core's server; once, while it loads the pack."""
    TakeRoutes().register(server.routes)
