"""A take that is directed while it is made, as pages see it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from ...helios_core.take.director import Director
from ...helios_core.take.history import History
from ...helios_core.take.progress import OpenProgress
from ...helios_core.take.store import ChunkStore
from .events import VERSION, ChunkState, TakeFeed


@dataclass(frozen=True)
class TakeDirected:
    """A direction was given, or a chunk began.

    ``state`` is that of ``GET /helios/takes/{id}/direct``. Chunks from its ``next_chunk`` on are no longer part of the
    film.
    """

    id: str
    state: dict[str, Any]
    kind: str = "directed"
    version: int = VERSION


class LiveFeed(TakeFeed):
    """Tells pages about a take that ``director`` directs; other arguments as for :class:`TakeFeed`."""

    progress: OpenProgress

    def __init__(
        self,
        director: Director,
        progress: OpenProgress,
        history: History,
        seed: int,
        name: str,
        hidden: Any,
        store: ChunkStore,
    ):
        super().__init__(progress, history, seed, (), name, hidden, store)
        self.director = director
        self._follow()

    def remembered(self) -> dict[str, Any]:
        """See :meth:`TakeFeed.remembered`; how long the take becomes is not known."""
        return {**super().remembered(), "num_chunks": 0, "live": True}

    def directing(self) -> dict[str, Any]:
        """What ``GET /helios/takes/{id}/direct`` answers."""
        rate = self.progress.frames_per_second
        speed = {"fps": None, "realtime": None}
        if rate is not None:
            speed = {"fps": round(rate, 3), "realtime": round(rate / self.fps, 3)}
        return {**self.director.state(), **speed}

    def changed(self) -> None:
        """For the director: a direction was given, or a chunk began."""
        self._follow()
        self._send(TakeDirected(self.id, self.directing()))

    def _follow(self) -> None:
        script, cursor = self.director.script, self.director.cursor
        count = len(self.progress.steps_per_chunk)
        if self.progress.open_end:
            count = max(1, cursor - self.director.first)
        with self._lock:
            for discarded in [chunk for chunk in self._chunks if chunk >= cursor]:
                del self._chunks[discarded]
            for discarded in [chunk for chunk in self._segments if chunk >= cursor]:
                self.discarded.add((discarded, self._segments.pop(discarded)))
            self._state = replace(
                self._state,
                live=True,
                rows=script.schedule.rows,
                seed_changes=script.seed_changes,
                num_chunks=count,
            )

    def finished(self, chunk: int, reused: bool, thumbnail: bytes | None = None, segment: str | None = None) -> None:
        if self.director.wants(chunk):
            super().finished(chunk, reused, thumbnail, segment)

    def _change(self, chunk: ChunkState) -> None:
        if self.director.wants(chunk.chunk):  # else it was discarded while it was made
            super()._change(chunk)

    def __enter__(self) -> LiveFeed:
        super().__enter__()
        self.director.on_change = self.changed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.director.end_now()
        with self._lock:
            self._state = replace(self._state, num_chunks=max(1, self.director.cursor - self.director.first))
        super().__exit__(kind, error, traceback)
