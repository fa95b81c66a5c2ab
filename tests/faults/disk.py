"""A disk that loses power, or fills up, at any moment.

``Recorder`` notes what a folder's files would be after a power cut at that moment: a file's content is safe as far
as it was when the file was last synchronised, a name as it was when its folder was. Everything else may or may not
have reached the disk. ``Failing`` makes the n-th access that changes something fail, with all later ones if wanted.

Both stand at the functions of Python by which the pack changes files. FFmpeg writes its own file, which the pack
synchronises before it gets a name that counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("mkdir", "touch", "unlink", "replace", "open")
NOTHING, NAMES, SOME = "nothing", "names alone", "some of it"
KINDS = (NOTHING, NAMES, SOME)


@dataclass(frozen=True)
class Moment:
    """A folder as programs see it, and as the disk surely has it.

    Attributes:
        at: what was done just before.
        names: of every folder, by path: names and inodes.
        data: content by inode; ``None`` for folders.
        safe_names, safe_data: the same, of what was synchronised.
        notes: what the program had been promised.
    """

    at: str
    names: dict[Path, dict[str, int]]
    data: dict[int, bytes | None]
    safe_names: dict[Path, dict[str, int]]
    safe_data: dict[int, bytes]
    notes: tuple[str, ...]

    def survives(self, kind: str, folder: Path, rng: random.Random) -> None:
        """Lays out in ``folder`` what is found after the power cut.

        ``kind``: of what was not synchronised ``NOTHING`` arrived, ``NAMES`` did and content did not (zeros lie
        there), or ``SOME``, drawn entry by entry.
        """
        self._lay(Path(), folder, kind, rng)

    def _lay(self, at: Path, target: Path, kind: str, rng: random.Random) -> None:
        target.mkdir(parents=True)
        seen, safe = self.names.get(at, {}), self.safe_names.get(at, {})
        for name in sorted({*seen, *safe}):
            inode = safe.get(name) if kind == NOTHING else seen.get(name)
            if kind == SOME:
                inode = rng.choice([seen.get(name), safe.get(name)])
            if inode is None:
                continue
            if self.data[inode] is None:
                self._lay(at / name, target / name, kind, rng)
            else:
                (target / name).write_bytes(self._content(inode, kind, rng))

    def _content(self, inode: int, kind: str, rng: random.Random) -> bytes:
        seen, safe = self.data[inode], self.safe_data.get(inode, b"")
        if kind == NOTHING or seen == safe:
            return safe
        zeros = safe[: len(seen)] + bytes(max(0, len(seen) - len(safe)))
        return zeros if kind == NAMES else rng.choice([seen, safe, zeros, seen[: rng.randrange(len(seen) + 1)]])


@dataclass
class Recorder:
    """Every moment of what is done in ``folder``; files that are deleted are kept in ``attic``.

    ``lying`` disks tell that they have synchronised, and have not.
    """

    folder: Path
    attic: Path
    lying: bool = False
    notes: list[str] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._safe_data: dict[int, bytes] = {}
        self._names, self._data = self._seen()
        # What was there before has long been on the disk.
        self._safe_names: dict[Path, dict[str, int]] = dict(self._names)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            synchronise = os.fsync

            def fsync(descriptor: int) -> None:
                with self._lock:
                    self.note("before fsync")
                    synchronise(descriptor)
                    if not self.lying:
                        self._synchronised(os.fstat(descriptor).st_ino)
                    self.note("fsync")

            patch.setattr(os, "fsync", fsync)
            for name in ("replace", "unlink", "mkdir"):
                patch.setattr(Path, name, self._noted(name, getattr(Path, name)))
            yield

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(path: Path, *arguments: Any, **options: Any) -> Any:
            with self._lock:
                result = function(path, *arguments, **options)
                self.note(f"{name} {path.name}")
            return result

        return noted

    def _seen(self) -> tuple[dict[Path, dict[str, int]], dict[int, bytes | None]]:
        names: dict[Path, dict[str, int]] = {}
        data: dict[int, bytes | None] = {}
        for folder, folders, files in os.walk(self.folder):
            entries = names.setdefault(Path(folder).relative_to(self.folder), {})
            for name in folders:
                entries[name] = (Path(folder) / name).stat().st_ino
                data[entries[name]] = None
            for name in files:
                # The other thread may remove it meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    path = Path(folder) / name
                    inode = path.stat().st_ino
                    kept = self.attic / str(inode)
                    if not kept.exists():  # while a link is there, no new file gets its number
                        os.link(path, kept)
                    data[inode] = path.read_bytes()
                    entries[name] = inode
        return names, data

    def _synchronised(self, inode: int) -> None:
        names, data = self._seen()
        if data.get(inode) is not None:
            self._safe_data[inode] = data[inode]
        for folder in names:
            if (self.folder / folder).stat().st_ino == inode:
                self._safe_names[folder] = names[folder]

    def note(self, at: str) -> None:
        names, data = self._seen()
        before = self.moments[-1].data if self.moments else {}
        gone = {inode: before.get(inode) for inode in self._named() - data.keys()}
        self.moments.append(
            Moment(at, names, {**gone, **data}, dict(self._safe_names), dict(self._safe_data), tuple(self.notes))
        )

    def _named(self) -> set[int]:
        return {inode for entries in self._safe_names.values() for inode in entries.values()}


class Failing:
    """Counts accesses that change files; from number ``first`` on they fail, ``times`` of them."""

    def __init__(self, number: int, first: int | None = None, times: float = float("inf")):
        self.number, self.first, self.times = number, first, times
        self.count = 0
        self._lock = threading.Lock()

    def access(self) -> None:
        with self._lock:
            self.count += 1
            if self.first is not None and self.first <= self.count < self.first + self.times:
                raise OSError(self.number, os.strerror(self.number))

    @contextlib.contextmanager
    def active(self) -> Iterator[Failing]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("mkdir", "touch", "replace"):
                patch.setattr(Path, name, self._counted(getattr(Path, name)))
            patch.setattr(os, "fsync", self._counted(os.fsync))
            opened, from_descriptor = Path.open, os.fdopen

            def open_path(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
                if mode != "wb":
                    return opened(path, mode, *arguments, **options)
                self.access()
                return _Counted(opened(path, mode, *arguments, **options), self)

            def open_descriptor(descriptor: int, mode: str = "r", *arguments: Any, **options: Any) -> Any:
                file = from_descriptor(descriptor, mode, *arguments, **options)
                return file if mode == "rb" else _Counted(file, self)

            patch.setattr(Path, "open", open_path)
            patch.setattr(os, "fdopen", open_descriptor)
            yield self

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.access()
            return function(*arguments, **options)

        return counted


class _Counted:
    """A file whose writes are accesses; a failing one writes the first half, as a full disk does."""

    def __init__(self, file: Any, failing: Failing):
        self._file, self._failing = file, failing

    def write(self, data: Any) -> int:
        try:
            self._failing.access()
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()
