"""A take: one complete render, chunk after chunk, each from the store or made now and kept there."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import HeliosError, shortened
from .chunk import Chunk
from .memory import begin_film, end_film
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
        self._lock = threading.Lock()  # the video's thread reports here too
        self._chunks: list[dict[str, Any]] = []
        self._manifest = {
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
        chunk = self.store.get_chunk(key) if self.resume else None
        chunk = chunk or replace(make(), key=key)
        # Before it is kept, which evicts: making it may have taken longer than files are spared.
        self.store.touch(entry["key"] for entry in self._chunks)
        if not chunk.reused:
            self.store.put_chunk(key, previous_key, chunk)
        entry = {"chunk": chunk.index, "key": key, "file": self.store.chunk_file(key).name, "reused": chunk.reused}
        if chunk.departed:
            entry["anti_drift"] = True
        with self._lock:
            self._chunks.append({**entry, "at": _now(), "in_video": False})
            self._write()
        return chunk

    def in_video(self, position: int, video: Path | None, segment: str = "") -> None:
        """Notes that the take's chunk number ``position``, from 0, is in ``video``, its part stored as ``segment``.

        ``video`` None: the part is stored, and no film is written.
        """
        with self._lock:
            self._chunks[position] |= {"in_video": video is not None, "segment": segment}
            self._manifest["video"] = None if video is None else str(video)
            self._write()

    def __enter__(self) -> Take:
        begin_film()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Notes how the render ended."""
        status = "finished" if error is None else f"failed: {error}"
        if error is not None and not isinstance(error, Exception):
            status = "interrupted"
        with contextlib.suppress(HeliosError):  # the disk may be what failed
            self.end(status)
        end_film()

    def end(self, status: str, video: Path | None = None) -> None:
        """Notes how the take ended: ``finished``, ``interrupted`` or an error's sentence."""
        with self._lock:
            self._manifest["status"] = status
            if video is not None:
                self._manifest["video"] = str(video)
            self._write()

    def _write(self) -> None:
        self._manifest["updated"] = _now()
        self.store.write_manifest(self.name, self._manifest)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
