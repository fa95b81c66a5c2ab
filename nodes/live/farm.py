"""Films of a farm as pages see them: the farm's events as those of takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy.utils import ProgressBar

from ...helios_core.distributed.jobs import Job
from ...helios_core.errors import HeliosError
from ...helios_core.take.history import History
from ...helios_core.take.progress import RenderProgress
from ...helios_core.take.seed_changes import parse_seed_changes
from ...helios_core.take.store import ChunkStore
from .events import TakeFeed


class ToldProgress(RenderProgress):
    """Progress whose numbers come from a worker."""

    told: dict[str, float | None] | None = None

    def numbers(self) -> dict[str, float | None]:
        return super().numbers() if self.told is None else self.told


class FarmFeeds:
    """A feed for every job; use as a context manager around the farm."""

    def __init__(self, jobs: Mapping[str, Job], hidden: Any, store: ChunkStore):
        self._bar = ProgressBar(sum(job.chunks for job in jobs.values()))
        self._done: set[tuple[str, int]] = set()
        self._feeds = {name: _feed(job, hidden, store) for name, job in jobs.items()}

    def __enter__(self) -> FarmFeeds:
        """Shows all films as waiting, the first of them last: pages show the newest."""
        for feed in reversed(self._feeds.values()):
            feed.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Films that are not finished end as the farm did."""
        for feed in self._feeds.values():
            if feed.running:
                feed.__exit__(*error)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Passes an event of the farm on."""
        feed = self._feeds.get(str(event.get("id")))
        if feed is None or event["event"] not in ("sampling", "decoding", "chunk"):
            return
        feed.progress.told = {name: event[name] for name in ("film_seconds", "fps", "seconds_left")}
        chunk = event["chunk"]
        if event["event"] == "sampling":
            feed.sampling(chunk, event["stage"], event["step"], event["steps"])
        elif event["event"] == "decoding":
            feed.decoding(chunk, event["reused"])
        else:
            feed.finished(chunk, event["reused"], segment=event["segment"])
            self._done.add((feed.name, chunk))
            self._bar.update_absolute(len(self._done))

    def finished(self, name: str, path: Path) -> None:
        """The film has its name."""
        self._feeds[name].published(path)
        self._feeds[name].__exit__(None, None, None)

    def failed(self, name: str, message: str) -> None:
        self._feeds[name].__exit__(HeliosError, HeliosError(message), None)


def _feed(job: Job, hidden: Any, store: ChunkStore) -> Any:
    progress = ToldProgress([1] * job.chunks, job.fps)
    start = History.empty(job.width, job.height)
    return TakeFeed(
        progress, start, job.seed, parse_seed_changes(job.seed_changes), job.id, hidden, store, rows=job.rows
    )
