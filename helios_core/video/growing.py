"""A film that grows by one segment at a time and is playable at every moment.

It is a fragmented MP4. Appending is one write of the segment as the next fragment, so the file holds every finished
chunk whatever happens to the process, and a segment from an earlier run is as good as a new one: a resumed film has
the frames of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import HeliosError
from .remux import as_fragment

PARTIAL_SUFFIX = ".partial.mp4"

log = logging.getLogger(__name__)


class GrowingVideo:
    """The growing file; each segment is on disk when :meth:`append` returns.

    An existing file, left by an earlier run, is kept as far as its bytes are those that would be appended, so it
    stays playable while the take catches up with it. A file that another process is writing is left alone: the
    name then gets a number.

    Raises:
        HeliosError: all numbers are taken.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path):
        self._file, self._lock, self.path = _open_exclusively(path)
        self._ends = [(0, Fraction(0))]  # of each number of chunks: the file's length, and the film's in seconds

    @property
    def chunks(self) -> int:
        return len(self._ends) - 1

    @property
    def _position(self) -> int:
        return self._ends[-1][0]

    def append(self, segment: bytes) -> None:
        """Adds one chunk.

        Raises:
            OSError: the disk is full; the file keeps the chunks before.
        """
        header, fragment, end = as_fragment(segment, self.chunks, self._ends[-1][1])
        data = fragment if self.chunks else header + fragment
        self._file.seek(self._position)
        if self._file.read(len(data)) != data:
            self._write(data)
        self._ends.append((self._position + len(data), end))

    def back_to(self, chunks: int) -> None:
        """Goes on behind the first ``chunks``: those that follow take the place of what was there."""
        del self._ends[chunks + 1 :]

    def _write(self, data: bytes) -> None:
        self._file.truncate(self._position)
        self._file.seek(self._position)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:
            # What was written of a chunk is no fragment; without it the file plays to its end.
            self._file.truncate(self._position)
            raise

    def cut(self) -> None:
        """Removes what an earlier, longer run left behind the chunks of this one."""
        self._file.truncate(self._position)

    def close(self, remove: bool = False) -> None:
        """Ends the writing. An empty file is removed, with ``remove`` any."""
        if self._file.closed:
            return
        self._file.close()
        with contextlib.suppress(OSError):  # Windows removes none that is open in a player
            if remove or not self.path.stat().st_size:
                self.path.unlink()
        _unlock(self._lock)


def _open_exclusively(path: Path) -> tuple[Any, FileLock, Path]:
    name = path.name.removesuffix(PARTIAL_SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{name}-{number}{PARTIAL_SUFFIX}")
        # A link under the name would have another file of this machine overwritten.
        if candidate.is_symlink():
            continue
        lock = FileLock(_lock_file(candidate), thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        except OSError as error:
            log.warning("%s cannot be locked (%s): render there from one process.", candidate, error)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            # Unbuffered: what a write has returned from is in the system's hands when the process is killed.
            return os.fdopen(os.open(candidate, flags, 0o666), "r+b", buffering=0), lock, candidate
        except BaseException:
            _unlock(lock)
            raise
    raise HeliosError(
        f"{path} and its numbered siblings are all links, or being written by other processes; wait for one."
    )


def is_growing(path: Path) -> bool:
    """Whether a process is writing the growing file ``path``."""
    lock = FileLock(_lock_file(path), thread_local=False)
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:
        return False
    _unlock(lock)
    return False


def _lock_file(path: Path) -> Path:
    # A file of its own: Windows lets nobody read what is locked.
    return path.with_name(f".{path.name}.lock")


def _unlock(lock: FileLock) -> None:
    if lock.is_locked:
        # While it is held, so that it is nobody else's; Windows removes it with the release.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
