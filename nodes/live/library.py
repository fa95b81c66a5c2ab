"""Takes of earlier processes, as pages see them: read back from the store that `helios_core.take.library` knows."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comfy.latent_formats import Wan21

from ...helios_core.take.library import StoredChunk, StoredTake, TakeLibrary
from ...helios_core.take.store import ChunkStore
from ...helios_core.variants import CHUNK_FRAMES, FPS
from ..adapters.takes import output_store
from .events import RECENT_TAKES, ChunkState, TakeState, feeds
from .origins import film_address
from .thumbnails import latent_thumbnail


class StoredParts:
    """A stored take, with what the routes ask of a running one."""

    discarded: Set[tuple[int, str]] = frozenset()  # its manifest names the last versions alone

    def __init__(self, take: StoredTake, store: ChunkStore):
        self.take, self.store, self.id = take, store, take.id
        self.fps = _number(take.settings.get("fps"), FPS)
        first = min((chunk.index for chunk in take.chunks), default=0)
        self.first_chunk = _whole(take.settings.get("first_chunk"), first)

    @property
    def running(self) -> bool:
        return self.take.status == "running"

    def _chunk(self, index: int) -> StoredChunk | None:
        return next((chunk for chunk in self.take.chunks if chunk.index == index), None)

    def segment(self, chunk: int) -> bytes | None:
        found = self._chunk(chunk)
        return self.store.get_segment(found.segment) if found is not None and found.segment else None

    def segment_file(self, chunk: int) -> Path | None:
        found = self._chunk(chunk)
        return None if found is None or self.segment(chunk) is None else self.store.segment_file(found.segment)

    def segments(self) -> dict[int, str]:
        """The keys of the chunks' encoded videos."""
        return {chunk.index: chunk.segment for chunk in self.take.chunks if chunk.segment}

    def thumbnail(self, chunk: int) -> bytes | None:
        """Made from the latents where the chunk was never decoded."""
        found = self._chunk(chunk)
        if found is None or found.segment:
            return None
        stored = self.store.get_chunk(found.key)
        return None if stored is None else latent_thumbnail(stored.latents, Wan21(), None, self.fps)

    def state(self) -> dict[str, Any]:
        """A :class:`TakeState` as JSON."""
        take, settings = self.take, self.take.settings
        done = sorted({chunk.index: chunk for chunk in take.chunks}.items())
        chunks = tuple(
            ChunkState(
                index,
                "finished",
                reused=chunk.reused,
                thumbnail=True,
                video=bool(chunk.segment),
                anti_drift=chunk.anti_drift,
            )
            for index, chunk in done
        )
        count = max(_whole(settings.get("num_chunks"), 1), len(chunks))
        seconds = round(len(chunks) * CHUNK_FRAMES / self.fps, 3)
        state = TakeState(
            id=take.id,
            node=_text(settings.get("node")),
            prompt_id="",
            workflow=_text(settings.get("workflow_id")) or None,
            name=take.name,
            first_chunk=self.first_chunk,
            num_chunks=count,
            chunk_frames=CHUNK_FRAMES,
            film_fps=self.fps,
            width=_whole(settings.get("width"), 640),
            height=_whole(settings.get("height"), 384),
            seed=_whole(settings.get("seed"), 0),
            seed_changes=_pairs(settings.get("seed_changes"), int),
            rows=_pairs(settings.get("rows"), str),
            status=take.status,
            message=take.message,
            progress={"film_seconds": seconds, "fps": None, "seconds_left": None},
            chunks=chunks,
            film=film_address(take.video) if take.status == "finished" else None,
            resumable=self.queued() is not None,
            store_only=settings.get("store_only") is True,
            live=settings.get("live") is True,
        )
        return asdict(state)

    def queued(self) -> dict[str, Any] | None:
        """``{"prompt", "workflow"}`` as it was queued; None where metadata was not to be written."""
        queued = self.take.settings.get("queued")
        return queued if isinstance(queued, dict) and isinstance(queued.get("prompt"), dict) else None


class LiveLibrary:
    """Stored takes that no feed of this process tells of, by the output folder in force."""

    def __init__(self) -> None:
        self._library: TakeLibrary | None = None
        self._lock = threading.Lock()

    def library(self) -> TakeLibrary:
        store = output_store()
        if self._library is None or self._library.store.folder != store.folder:
            self._library = TakeLibrary(store)
        return self._library

    def takes(self) -> list[StoredParts]:
        """Oldest first."""
        with self._lock:
            library = self.library()
            return [StoredParts(take, library.store) for take in library.takes()]

    def get(self, identifier: str) -> StoredParts | None:
        with self._lock:
            library = self.library()
            take = library.get(identifier)
            return None if take is None else StoredParts(take, library.store)

    def states(self) -> list[dict[str, Any]]:
        """The takes of this process and, before them, the last of earlier ones: what a page asks for as it opens."""
        live = feeds().states()
        names, ids = ({state[key] for state in live if state[key]} for key in ("name", "id"))
        earlier = [take for take in self.takes() if take.take.name not in names and take.id not in ids]
        return [take.state() for take in earlier[-RECENT_TAKES:]] + live

    def summaries(self) -> dict[str, Any]:
        """All stored films with their sizes, newest first, and the store's size."""
        running = {state["name"]: state for state in feeds().states() if state["status"] == "running"}
        found = []
        for parts in reversed(self.takes()):
            state = running.get(parts.take.name) or parts.state()
            if state["store_only"]:
                continue
            done = [chunk["chunk"] for chunk in state["chunks"] if chunk["state"] == "finished"]
            summary = {key: value for key, value in state.items() if key != "chunks"}
            extra = {"bytes": self.library().size(parts.take), "updated": parts.take.updated}
            found.append({**summary, **extra, "finished": len(done), "cover": done[0] if done else None})
        return {"takes": found, "bytes": self.library().store.size()}

    def delete(self, parts: StoredParts) -> int:
        """Bytes freed. Raises HeliosError for a take that is being rendered."""
        with self._lock:
            return self.library().delete(parts.take)


_library = LiveLibrary()


def library() -> LiveLibrary:
    """The stored takes of this ComfyUI."""
    return _library


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any, default: float) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1000
    return float(value) if fits else float(default)


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _pairs(value: Any, kind: type) -> tuple[tuple[int, Any], ...]:
    """[[first chunk, value]], or as older manifests have it {"first chunk": value}."""
    items = value.items() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    found = []
    for item in items:
        try:
            first, content = item
            first = int(first)
        except (TypeError, ValueError):
            continue
        if first >= 0 and isinstance(content, kind):
            found.append((first, content))
    return tuple(sorted(found))
