"""A custom node pack for ``benchmarks/live.py``: how long the thread that makes a live film waits for other things.

``GET /feed_clock``: seconds by kind since the first call. ``feed``: telling pages, and the director's lock; ``file``:
room in the queue of the growing video; ``prompts``: encoding them.
"""

import functools
import sys
import threading
import time
from collections import Counter

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
TIMED = (
    ("feed", "nodes.live.directing", "LiveFeed",
     ("sampling", "decoding", "departed", "finished", "changed", "published")),
    ("feed", "helios_core.take.director", "Director", ("begin", "wants")),
    ("file", "helios_core.take.video", "TakeVideo", ("_put",)),
    ("prompts", "nodes.adapters.live_chunks", "LiveChunks", ("begin",)),
)  # fmt: skip


class Clock:
    """Counts in the thread that entered the film; what is called within something counted is part of it."""

    def __init__(self):
        self.seconds, self.thread, self._within = Counter(), None, False
        for kind, module, owner, names in TIMED:
            found = next(loaded for name, loaded in list(sys.modules.items()) if name.endswith(f".{module}"))
            for name in names:
                self._time(kind, getattr(found, owner), name)
        feed = next(loaded for name, loaded in list(sys.modules.items()) if name.endswith(f".{TIMED[0][1]}")).LiveFeed
        enter = feed.__enter__

        def entered(this):
            self.thread = threading.get_ident()
            return enter(this)

        feed.__enter__ = entered

    def _time(self, kind, owner, name):
        called = getattr(owner, name)

        @functools.wraps(called)
        def timed(*values, **named):
            if self._within or threading.get_ident() != self.thread:
                return called(*values, **named)
            self._within, began = True, time.perf_counter()
            try:
                return called(*values, **named)
            finally:
                self._within = False
                self.seconds[kind] += time.perf_counter() - began

        setattr(owner, name, timed)


@functools.cache
def clock():
    return Clock()  # once all packs are loaded


@PromptServer.instance.routes.get("/feed_clock")
async def read(_):
    return web.json_response({kind: clock().seconds[kind] for kind in ("feed", "file", "prompts")})
