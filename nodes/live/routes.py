"""GET routes of the film strip: the state of takes, and a chunk's moving thumbnail or its part of the film.

- ``/helios/takes``: ``{"version", "takes": [TakeState]}`` (see ``events.py``), oldest first.
- ``/helios/takes/{id}/{chunk}/thumbnail``: animated WebP. ``.../video``: MP4 of that chunk alone.

What is not there (a chunk that is not finished, a store that was emptied, a take of an earlier process) answers 204
without content: pages ask for what may have gone, which is no error. A malformed address answers 400 with
``{"error": sentence}``. Nothing but segments that a take of this process named can be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ...helios_core.take.store import write_atomically
from .events import VERSION, TakeFeed, feeds
from .thumbnails import segment_thumbnail

IDENTIFIER = re.compile(r"[0-9a-f]{32}")
NO_BYTES = re.compile(r"(?i:bytes)=-0+")
CHUNK = re.compile(r"[0-9]{1,9}")
TYPES = {"thumbnail": "image/webp", "video": "video/mp4"}
# A finished chunk of a take never changes.
FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}
GONE = {"Cache-Control": "no-store"}
KEPT_THUMBNAILS = 256


class TakeRoutes:
    """Handlers. Thumbnails are made when a page first asks, and the newest kept in core's folder for passing files."""

    def __init__(self) -> None:
        self._thumbnails: deque[Path] = deque()
        self._at_work = asyncio.Semaphore(1)  # rendering needs the processor more than pages do

    def register(self, routes: web.RouteTableDef) -> None:
        routes.get("/helios/takes")(self.takes)
        routes.get("/helios/takes/{take}/{chunk}/{part}")(self.part)

    async def takes(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION, "takes": feeds().states()}, headers=GONE)

    async def part(self, request: web.Request) -> web.StreamResponse:
        take, chunk, part = (request.match_info[name] for name in ("take", "chunk", "part"))
        if not IDENTIFIER.fullmatch(take) or not CHUNK.fullmatch(chunk) or part not in TYPES:
            return refused(
                f"{request.path!r:.120} is no part of a take; ask for /helios/takes/<id>/<chunk>/thumbnail or video."
            )
        feed = feeds().get(take)
        find = self._thumbnail if part == "thumbnail" else _video
        file = None if feed is None else await find(feed, int(chunk))
        if file is None:
            return web.Response(status=204, headers=GONE)
        # The last no bytes, which aiohttp takes for all of them.
        if NO_BYTES.fullmatch(request.headers.get("Range", "")):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{file.stat().st_size}"})
        return web.FileResponse(file, headers={**FOREVER, "Content-Type": TYPES[part]})

    async def _thumbnail(self, feed: TakeFeed, chunk: int) -> Path | None:
        file = Path(folder_paths.get_temp_directory()) / f"helios-{feed.id}-{chunk}.webp"
        if not file.exists():
            async with self._at_work:
                await asyncio.to_thread(self._make_thumbnail, feed, chunk, file)
        return file if file.exists() else None

    def _make_thumbnail(self, feed: TakeFeed, chunk: int, file: Path) -> None:
        if file.exists():  # made for a request that came before
            return
        made = feed.thumbnail(chunk)
        segment = feed.segment(chunk) if made is None else None
        if segment is not None:
            made = segment_thumbnail(segment, feed.progress.fps)
        if made is None:
            return
        write_atomically(file, made, durable=False)
        self._thumbnails.append(file)
        if len(self._thumbnails) > KEPT_THUMBNAILS:
            with contextlib.suppress(OSError):  # gone, or being sent by Windows
                self._thumbnails.popleft().unlink()


async def _video(feed: TakeFeed, chunk: int) -> Path | None:
    return await asyncio.to_thread(feed.segment_file, chunk)


def refused(sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=400)


def register_routes(server: Any) -> None:
    """Adds the routes to core's server; once, while it loads the pack."""
    TakeRoutes().register(server.routes)
