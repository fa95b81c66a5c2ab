"""Takes as the store remembers them: read from their manifests, measured, deleted.

Manifests are files that anybody may have edited, so every entry is checked before it names a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import HeliosError
from ..networks.settings import read_object
from ..video.growing import is_growing
from .store import TAKE_FORMAT, ChunkStore
from .take import check_name

_KEY = re.compile(r"[0-9a-f]{1,128}")
_IDENTIFIER = re.compile(r"[0-9a-f]{32}")

Status = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class StoredChunk:
    """A chunk that a manifest lists: its number in the video, its key, and its segment's where it has one.

    ``anti_drift``: whether it departed from the film so far.
    """

    index: int
    key: str
    segment: str
    reused: bool
    anti_drift: bool


@dataclass(frozen=True)
class StoredTake:
    """What a manifest says.

    Attributes:
        id: 32 hexadecimal digits, the same in every process.
        status: ``running`` only while a process is at work on it.
        message: why it failed.
        updated: local time of the last change, ISO 8601.
        video: the finished file, or the growing one.
    """

    id: str
    name: str
    status: Status
    message: str
    updated: str
    video: Path | None
    settings: Mapping[str, Any]
    chunks: tuple[StoredChunk, ...]

    def stored_keys(self) -> set[str]:
        """All keys under which the store may hold a file of it."""
        return {key for chunk in self.chunks for key in (chunk.key, chunk.segment) if key}


class TakeLibrary:
    """The takes of one store. A manifest is read again only when its file has changed."""

    def __init__(self, store: ChunkStore):
        self.store = store
        self._read: dict[Path, tuple[tuple[int, int], StoredTake | None]] = {}

    def takes(self) -> list[StoredTake]:
        """All takes, the one that changed last at the end."""
        found = []
        for path in self.store.takes.glob("*.json"):
            with contextlib.suppress(OSError):  # removed meanwhile
                state = path.stat()
                stamp = (state.st_mtime_ns, state.st_size)
                known, take = self._read.get(path, ((0, 0), None))
                # One that another process renders may be killed without a word.
                if known != stamp or (take is not None and take.status == "running"):
                    take = _read_take(path)
                    self._read[path] = (stamp, take)
                if take is not None:
                    found.append((stamp, take))
        return [take for _, take in sorted(found, key=lambda item: (item[0], item[1].name))]

    def get(self, identifier: str) -> StoredTake | None:
        return next((take for take in self.takes() if take.id == identifier), None)

    def size(self, take: StoredTake) -> int:
        """Bytes of the take's chunks and segments; takes may share them."""
        return sum(path.stat().st_size for path in self._files(take.stored_keys()))

    def delete(self, take: StoredTake) -> int:
        """Removes the manifest, and the chunks and segments that no other take lists; returns the bytes freed.

        Its film, finished or growing, stays.

        Raises:
            HeliosError: the take is being rendered.
        """
        if take.status == "running":
            raise HeliosError(f"take {take.name!r} is being rendered; stop it first.")
        shared = {key for other in self.takes() if other.name != take.name for key in other.stored_keys()}
        freed = 0
        (self.store.takes / f"{take.name}.json").unlink(missing_ok=True)
        for path in self._files(take.stored_keys() - shared):
            with contextlib.suppress(OSError):  # gone already, or open in a player on Windows
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def _files(self, keys: Iterable[str]) -> Iterator[Path]:
        for key in keys:
            for path in (self.store.chunk_file(key), self.store.segment_file(key)):
                if path.is_file():
                    yield path


def _read_take(path: Path) -> StoredTake | None:
    """None for what is no manifest of ours."""
    try:
        manifest = read_object(path)
        name = check_name(path.stem)
    except HeliosError:
        return None
    if manifest.get("format") != TAKE_FORMAT:
        return None
    settings = manifest.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    video = manifest.get("video")
    video = Path(video) if isinstance(video, str) and video else None
    status, message = _status(str(manifest.get("status")), video)
    identifier = settings.get("id")
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        identifier = hashlib.md5(name.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    entries = manifest.get("chunks")
    chunks = tuple(filter(None, map(_chunk, entries if isinstance(entries, list) else ())))
    return StoredTake(identifier, name, status, message, str(manifest.get("updated")), video, settings, chunks)


def _status(text: str, video: Path | None) -> tuple[Status, str]:
    if text in ("finished", "interrupted"):
        return text, ""  # type: ignore[return-value]
    if text == "running":
        # A process that was killed could not say so.
        return ("running" if video is not None and is_growing(video) else "interrupted"), ""
    return "failed", text.removeprefix("failed: ")


def _chunk(entry: Any) -> StoredChunk | None:
    if not isinstance(entry, dict):
        return None
    index, key, segment = (entry.get(name) for name in ("chunk", "key", "segment"))
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        return None
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        return None
    has_segment = isinstance(segment, str) and _KEY.fullmatch(segment) is not None
    reused, departed = (entry.get(name) is True for name in ("reused", "anti_drift"))
    return StoredChunk(index, key, str(segment) if has_segment else "", reused, departed)
