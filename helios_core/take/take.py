"""A take: one complete render, chunk after chunk, each from the store or made now and kept there."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import HeliosError, shortened
from .chunk import Chunk
from .history import History
from .memory import return_freed
from .store import TAKE_FORMAT, ChunkStore

VERSION = 1
MAX_NAME = 100
_NAME = re.compile(r"[\w\-. ]+")


def check_name(name: str) -> str:
    """A take's name, which becomes a file's name.

    Raises:
        HeliosError: empty, too long, or with characters that could leave the folder.
    """
    if not _NAME.fullmatch(name) or name.strip(" .") != name or len(name) > MAX_NAME:
        raise HeliosError(
            f"take {shortened(name)} is not a usable name; use up to {MAX_NAME} letters, digits, dots, spaces, '-' "
            "and '_'."
        )
    return name


def name_for(text: str, end: str = "") -> str:
    """A take's name from a file's, which may hold other characters; ``end`` is kept whole."""
    return (re.sub(r"[^\w\-. ]", "_", text).strip(" .")[:80].strip(" .") or "film") + end


class Take:
    """Keeps every finished chunk in the store, and a manifest that tells people what the take consists of.

    Args:
        name: of the manifest, ``takes/<name>.json``.
        settings: shown in the manifest: prompts, seed, size, and what a front end keeps there.
        resume: False makes every chunk anew; the results are kept all the same.
    """

    def __init__(self, store: ChunkStore, name: str, settings: Mapping[str, Any], resume: bool = True):
        self.store, self.name, self.resume = store, check_name(name), resume
        self.history: History | None = None  # after the last chunk
        self._lock = threading.Lock()  # the video's thread reports here too
        self._chunks: list[dict[str, Any]] = []
        self._first: int | None = None
        self._directions: list[Mapping[str, Any]] = []
        self._manifest: dict[str, Any] = {
            "format": TAKE_FORMAT,
            "version": VERSION,
            "take": name,
            "started": _now(),
            "status": "running",
            "settings": dict(settings),
            "video": None,
            "chunks": self._chunks,
        }
        store.prepare()

    def chunk(self, key: str, previous_key: str, make: Callable[[], Chunk]) -> Chunk:
        """The chunk of ``key``: from the store, or made by ``make`` and kept before this returns."""
        return_freed()  # by the last chunk, which may have been decoded alone
        chunk = self.store.get_chunk(key) if self.resume else None
        if chunk is None:
            chunk = replace(make(), key=key)
            return_freed()
        # Before it is kept, which evicts: making it may have taken longer than files are spared.
        self.store.touch(self._keys())
        if not chunk.reused:
            self.store.put_chunk(key, previous_key, chunk)
        entry = {"chunk": chunk.index, "key": key, "file": self.store.chunk_file(key).name, "reused": chunk.reused}
        if chunk.departed:
            entry["anti_drift"] = True
        with self._lock:
            self._first = chunk.index if self._first is None else self._first
            if chunk.index == self._first + len(self._chunks):  # else it was discarded while it was made
                self._chunks.append({**entry, "at": _now(), "in_video": False})
            self._write()
        self.history = chunk.history
        return chunk

    def _keys(self) -> list[str]:
        with self._lock:
            return [entry["key"] for entry in self._chunks]

    @property
    def count(self) -> int:
        """Chunks that the take consists of."""
        return len(self._chunks)

    def back_to(self, chunk: int) -> Chunk | None:
        """Discards chunk number ``chunk`` of the video and those behind it; they stay in the store.

        Returns the last one that is left, None where there is none.

        Raises:
            HeliosError: the store has lost it.
        """
        with self._lock:
            if self._discard(chunk):
                self._write()
            last = self._chunks[-1] if self._chunks else None
        found = None if last is None else self.store.get_chunk(last["key"])
        if last is not None and found is None:
            raise HeliosError(
                f"chunk {last['chunk']} of take {self.name!r} is no longer in the store, so chunk {chunk} cannot "
                "follow it; make the film again."
            )
        self.history = None if found is None else found.history
        return found

    def forget(self, chunk: int) -> None:
        """Discards ``chunk``, which was rolled again while it was made; it stays in the store."""
        with self._lock:
            if self._discard(chunk):
                self._write()

    def _discard(self, chunk: int) -> bool:
        """Forgets ``chunk`` and those behind it; whether there were any."""
        kept = [entry for entry in self._chunks if entry["chunk"] < chunk]
        fewer = len(kept) < len(self._chunks)
        self._chunks[:] = kept
        return fewer

    def begin_directing(self, directions: Iterable[Mapping[str, Any]], **settings: Any) -> None:
        """The film is directed: it begins with ``directions``; :meth:`note` takes ``settings``."""
        self._directions[:] = directions
        self._manifest["directions"] = self._directions
        self.note(**settings)

    def note(self, **settings: Any) -> None:
        """Adds to the take's settings; they are written with what comes next."""
        self._manifest["settings"] |= settings

    def direct(self, direction: Mapping[str, Any] | None, discarded: int | None = None, **settings: Any) -> None:
        """Keeps a direction; on return it survives a power loss.

        Args:
            direction: None for one that is not to be kept.
            discarded: the first chunk that is no longer part of the film.
            settings: of the take, which have changed by it.

        Raises:
            HeliosError: the store cannot be written; nothing is kept.
        """
        with self._lock:
            before, chunks, directions = dict(self._manifest), list(self._chunks), list(self._directions)
            if direction is not None:
                self._directions.append({**direction, "at": _now()})
            self._manifest["settings"] = before["settings"] | settings
            if discarded is not None:
                self._discard(discarded)
            try:
                self._write(durable=True)
            except BaseException:
                self._manifest |= before
                self._chunks[:], self._directions[:] = chunks, directions
                raise

    def in_video(self, key: str, video: Path | None, segment: str = "") -> bool:
        """Notes that the chunk of ``key`` is in ``video``, its part stored as ``segment``.

        False where it has been discarded by now.

        ``video`` None: the part is stored, and no film is written.
        """
        with self._lock:
            entry = next((entry for entry in reversed(self._chunks) if entry["key"] == key), None)
            if entry is not None:
                entry |= {"in_video": video is not None, "segment": segment}
            self._manifest["video"] = None if video is None else str(video)
            self._write()
        return entry is not None

    def __enter__(self) -> Take:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Notes how the render ended."""
        status = "finished" if error is None else f"failed: {error}"
        if error is not None and not isinstance(error, Exception):
            status = "interrupted"
        with contextlib.suppress(HeliosError):  # the disk may be what failed
            self.end(status)
        return_freed()

    def end(self, status: str, video: Path | None = None) -> None:
        """Notes how the take ended: ``finished``, ``interrupted`` or an error's sentence."""
        with self._lock:
            self._manifest["status"] = status
            if video is not None:
                self._manifest["video"] = str(video)
            self._write()

    def _write(self, durable: bool = False) -> None:
        self._manifest["updated"] = _now()
        self.store.write_manifest(self.name, self._manifest, durable)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
