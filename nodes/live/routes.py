"""Routes of the film strip and the panel of takes: their state, a chunk's moving thumbnail or its part of the film.

- ``/helios/takes``: ``{"version", "takes": [TakeState]}`` (see ``events.py``), oldest first: those of this process,
  and the last that the store remembers.
- ``/helios/library``: ``{"version", "takes", "bytes"}``, all takes that the store remembers, newest first, without
  their chunks but with ``bytes``, ``updated``, ``finished`` and ``cover``, the first chunk to show.
- ``/helios/takes/{id}``: ``{"version", "take": TakeState}``. DELETE removes a stored take: ``{"freed": bytes}``, or 409
  while it is rendered.
- ``/helios/takes/{id}/queued``: ``{"prompt", "workflow"}`` as it was queued, to queue it again.
- ``/helios/takes/{id}/{chunk}/thumbnail``: animated WebP. ``.../video``: MP4 of that chunk alone.

What is not there (a chunk that is not finished, a store that was emptied) answers 204 without content: pages ask for
what may have gone, which is no error. A malformed address answers 400 with ``{"error": sentence}``. Nothing but chunks
and segments that a take names can be reached.
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

from ...helios_core.errors import HeliosError
from ...helios_core.take.store import write_atomically
from .directing import LiveFeed
from .events import VERSION, TakeFeed, feeds
from .library import StoredParts, library
from .thumbnails import segment_thumbnail

IDENTIFIER = re.compile(r"[0-9a-f]{32}")
NO_BYTES = re.compile(r"(?i:bytes)=-0+")
CHUNK = re.compile(r"0|[1-9][0-9]{0,8}")
TYPES = {"thumbnail": "image/webp", "video": "video/mp4"}
# A finished chunk of a take never changes, but for one that may be made again.
FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}
CHECKED = {"Cache-Control": "private, no-cache"}
GONE = {"Cache-Control": "no-store"}
KEPT_THUMBNAILS = 1024

TakeParts = TakeFeed | StoredParts


class TakeRoutes:
    """Handlers. Thumbnails are made when a page first asks, and the newest kept in core's folder for passing files."""

    def __init__(self) -> None:
        self._thumbnails: deque[Path] = deque()
        self._at_work = asyncio.Semaphore(1)  # rendering needs the processor more than pages do

    def register(self, routes: web.RouteTableDef) -> None:
        routes.get("/helios/takes")(self.takes)
        routes.get("/helios/library")(self.stored)
        routes.get("/helios/takes/{take}")(self.take)
        routes.delete("/helios/takes/{take}")(self.delete)
        routes.get("/helios/takes/{take}/queued")(self.queued)
        routes.get("/helios/takes/{take}/{chunk}/{part}")(self.part)

    async def takes(self, _: web.Request) -> web.Response:
        return answer(takes=await asyncio.to_thread(library().states))

    async def stored(self, _: web.Request) -> web.Response:
        return answer(**await asyncio.to_thread(library().summaries))

    async def take(self, request: web.Request) -> web.Response:
        found = await asyncio.to_thread(find_take, request.match_info["take"])
        return refused_take(request) if found is None else answer(take=found.state())

    async def queued(self, request: web.Request) -> web.Response:
        found = await asyncio.to_thread(find_take, request.match_info["take"])
        queued = None if found is None else found.queued()
        return refused_take(request) if queued is None else answer(**queued)

    async def delete(self, request: web.Request) -> web.Response:
        stored = await asyncio.to_thread(library().get, request.match_info["take"])
        if stored is None:
            return refused_take(request)
        if feeds().is_running(stored.take.name):
            return refused(f"take {stored.take.name!r} is being rendered; stop it first.", 409)
        try:
            freed = await asyncio.to_thread(library().delete, stored)
        except HeliosError as error:
            return refused(str(error), 409)
        feeds().forget(stored.take.name)
        return answer(freed=freed)

    async def part(self, request: web.Request) -> web.StreamResponse:
        take, chunk, part = (request.match_info[name] for name in ("take", "chunk", "part"))
        if not IDENTIFIER.fullmatch(take) or not CHUNK.fullmatch(chunk) or part not in TYPES:
            return refused(
                f"{request.path!r:.120} is no part of a take; ask for /helios/takes/<id>/<chunk>/thumbnail or video."
            )
        feed = await asyncio.to_thread(find_take, take)
        find = self._thumbnail if part == "thumbnail" else _video
        file = None if feed is None else await find(feed, int(chunk))
        if file is None:
            return web.Response(status=204, headers=GONE)
        # The last no bytes, which aiohttp takes for all of them.
        if NO_BYTES.fullmatch(request.headers.get("Range", "")):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{file.stat().st_size}"})
        caching = CHECKED if isinstance(feed, LiveFeed) else FOREVER
        return web.FileResponse(file, headers={**caching, "Content-Type": TYPES[part]})

    async def _thumbnail(self, feed: TakeParts, chunk: int) -> Path | None:
        name = f"helios-{feed.id}-{chunk}-{feed.segments().get(chunk, '')[:16]}.webp"
        file = Path(folder_paths.get_temp_directory()) / name
        if not file.exists():
            async with self._at_work:
                await asyncio.to_thread(self._make_thumbnail, feed, chunk, file)
        return file if file.exists() else None

    def _make_thumbnail(self, feed: TakeParts, chunk: int, file: Path) -> None:
        if file.exists():  # made for a request that came before
            return
        made = feed.thumbnail(chunk)
        segment = feed.segment(chunk) if made is None else None
        if segment is not None:
            made = segment_thumbnail(segment, feed.fps)
        if made is None:
            return
        write_atomically(file, made, durable=False)
        self._thumbnails.append(file)
        if len(self._thumbnails) > KEPT_THUMBNAILS:
            with contextlib.suppress(OSError):  # gone, or being sent by Windows
                self._thumbnails.popleft().unlink()


async def _video(feed: TakeParts, chunk: int) -> Path | None:
    return await asyncio.to_thread(feed.segment_file, chunk)


def find_take(identifier: str) -> TakeParts | None:
    """The take of this process, or of an earlier one."""
    return feeds().get(identifier) or library().get(identifier)


def answer(**content: Any) -> web.Response:
    return web.json_response({"version": VERSION, **content}, headers=GONE)


def refused(sentence: str, status: int = 400) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def refused_take(request: web.Request) -> web.Response:
    """No content where there is no such take, a sentence where there can be none."""
    identifier = request.match_info["take"]
    if IDENTIFIER.fullmatch(identifier):
        return web.Response(status=204, headers=GONE)
    return refused_identifier(identifier)


def refused_identifier(identifier: str) -> web.Response:
    return refused(f"{identifier!r:.60} is no take's id; ask for one that /helios/takes lists.")


def register_routes(server: Any) -> None:
    """Adds the routes to core's server; once, while it loads the pack."""
    TakeRoutes().register(server.routes)
