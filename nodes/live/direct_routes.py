"""Directing a take over HTTP: ``/helios/takes/{id}/direct``.

- GET: ``{"version", "live", "paused", "next_chunk", "rows": [{"chunk", "text", "blend"}], "pending": [{"direction",
  "do", "chunk", "text"}], "seed_changes", "fps", "realtime"}``. ``next_chunk`` is the first that can still change,
  ``pending`` what no chunk has used yet, ``realtime`` the frames made a second in parts of the film's. Events of kind
  ``directed`` carry the same.
- POST ``{"version": 1, "do": ACTION, ...}``: ``{"version", "direction", "chunk", "second", "state"}``, the number of
  the direction, and the chunk and second of film from which it holds. The actions are those of
  ``helios_core/take/directions.py``: ``prompt`` (``text``, ``chunk``, ``blend``), ``undo``, ``pause``, ``continue``,
  ``stop``, ``roll`` (``chunk``, ``seed``) and ``anchor`` (``image``, in the input folder).

What cannot be followed answers 400, an unknown take 404, one that takes no directions 409, each with ``{"error":
sentence}``; nothing has changed then.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ...helios_core.errors import HeliosError
from ...helios_core.take.directions import Direction, read_direction
from ...helios_core.take.director import TakeEndedError
from ...helios_core.take.seed_changes import seed_changes_text
from .directing import LiveFeed
from .routes import IDENTIFIER, TakeParts, answer, find_take, refused, refused_take


async def state(request: web.Request) -> web.Response:
    feed = await asyncio.to_thread(find_take, request.match_info["take"])
    return refused_take(request) if feed is None else answer(**_state_of(feed))


async def direct(request: web.Request) -> web.Response:
    identifier = request.match_info["take"]
    if not IDENTIFIER.fullmatch(identifier):
        return refused_take(request)
    try:
        wish = read_direction(await request.json())
    except HeliosError as error:
        return refused(str(error))
    except (ValueError, RecursionError):
        return refused("the body is not JSON; send one like {'version': 1, 'do': 'pause'}.")
    feed = await asyncio.to_thread(find_take, identifier)
    if feed is None:
        return refused(f"there is no take {identifier}; ask for one that /helios/takes lists.", 404)
    if not isinstance(feed, LiveFeed):
        return refused("the take is not being made, or not live; direct one while Helios Live Video makes it.", 409)
    try:
        return await asyncio.to_thread(_direct, feed, wish)
    except TakeEndedError as error:
        return refused(str(error), 409)
    except HeliosError as error:
        return refused(str(error))


def _direct(feed: LiveFeed, wish: Direction) -> web.Response:
    said = feed.director.direct(wish)
    assert said.chunk is not None
    second = feed.director.second_of(said.chunk, feed.fps)
    return answer(direction=said.number, chunk=said.chunk, second=second, state=feed.directing())


def _state_of(feed: TakeParts) -> dict[str, Any]:
    """Of a take that is not directed here: what is known of it."""
    if isinstance(feed, LiveFeed):
        return feed.directing()
    take = feed.state()
    return {
        "live": False,
        "paused": False,
        "next_chunk": take["first_chunk"] + len(take["chunks"]),
        "rows": [{"chunk": first, "text": text, "blend": None} for first, text in take["rows"]],
        "pending": [],
        "seed_changes": seed_changes_text(take["seed_changes"]),
        "fps": None,
        "realtime": None,
    }


def register_direct_routes(server: Any) -> None:
    """Adds the routes to core's server; once, while it loads the pack."""
    server.routes.get("/helios/takes/{take}/direct")(state)
    server.routes.post("/helios/takes/{take}/direct")(direct)
