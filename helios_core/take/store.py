"""The chunk store: every finished chunk is a file on disk, named by everything that determines it, and so is its video.

One folder serves all takes: ``<output folder>/helios_store``. A file's name is its key, so the same work has the
same name whichever take, process or day asks for it. That makes everything else simple:

- resuming is looking the next key up; extending a take, or changing its prompt from some chunk on, finds the
  chunks before and samples the rest;
- two processes on one folder write equal content under equal names, by atomic renames, so neither needs to know
  of the other;
- eviction removes the files that were used longest ago. What was used within the last hour stays, and a running
  take touches its files at every chunk, so nothing is taken from under it.

``takes/<name>.json`` tells people what a take consists of (see ``take.py``); nothing is decided by it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import stat
import struct
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..checkpoint.header import header_of
from ..errors import HeliosError, reason
from ..networks.settings import parse_object, read_object
from .chunk import Chunk
from .fingerprint import DIGEST_BYTES, fingerprint
from .history import History

FOLDER_NAME = "helios_store"
FORMAT, VERSION = "helios-store", 1
TAKE_FORMAT = "helios-take"
DEFAULT_MAX_BYTES = 32 * 2**30
GRACE_SECONDS = 3600.0
CLOCK_SECONDS = 60.0
CHUNK_SUFFIX, SEGMENT_SUFFIX, PART_SUFFIX = ".chunk.safetensors", ".segment.mp4", ".part"
# The folder may be shared with others' files, which eviction and clearing must not touch. Segments were safetensors
# files once; such a file is no longer read.
_OWN_NAME = re.compile(r"[0-9a-f]+\.(chunk\.safetensors|segment\.(mp4|safetensors))|[0-9a-f]{32}\.part")
SEAL_BYTES = 8 + 2 * DIGEST_BYTES

log = logging.getLogger(__name__)


class ChunkStore:
    """Finished chunks and their encoded segments in ``folder``.

    Args:
        max_bytes: size limit; files used longest ago go first.
        grace: seconds after its last use during which a file is never evicted.
    """

    def __init__(self, folder: str | Path, max_bytes: int = DEFAULT_MAX_BYTES, grace: float = GRACE_SECONDS):
        self.folder = Path(folder)
        self.max_bytes, self.grace = max_bytes, grace

    def prepare(self) -> None:
        """Refuses a folder that cannot be written, before any work is done for it."""
        probe = self.folder / f"{uuid.uuid4().hex}{PART_SUFFIX}"
        with self._reported():
            make_folder(self.folder)
            probe.touch()
            probe.unlink()

    # -- chunks and segments -------------------------------------------------------------------------

    def chunk_file(self, key: str) -> Path:
        return self.folder / f"{key}{CHUNK_SUFFIX}"

    def segment_file(self, key: str) -> Path:
        return self.folder / f"{key}{SEGMENT_SUFFIX}"

    def get_chunk(self, key: str) -> Chunk | None:
        """The chunk of ``key``; None where it was never made, was evicted, or is damaged."""
        found = self._read(self.chunk_file(key), key)
        if found is None:
            return None
        try:
            return _stored_chunk(key, *found)
        except HeliosError as error:
            self._discard(self.chunk_file(key), error)
            return None

    def put_chunk(self, key: str, previous_key: str, chunk: Chunk) -> None:
        """Keeps a finished chunk; on return it survives a power loss.

        Raises:
            HeliosError: the disk is full or the folder cannot be written.
        """
        tensors, plain = chunk.history.parts()
        tensors = {"chunk": chunk.latents, **{f"history.{name}": value for name, value in tensors.items()}}
        values = {"previous_key": previous_key, "chunk": chunk.index, "history": plain}
        self._write(self.chunk_file(key), _packed(key, tensors, values))

    def get_segment(self, key: str) -> bytes | None:
        """The encoded video of ``key``; None as for chunks."""
        path = self.segment_file(key)
        data = _content(path)
        if data is None:
            return None
        segment = data[:-SEAL_BYTES]
        if data != segment + _seal(key, segment):
            self._discard(path, HeliosError("wrong checksum"))
            return None
        return segment

    def put_segment(self, key: str, data: bytes) -> None:
        """Keeps one chunk's encoded video, an MP4. Raises as :meth:`put_chunk`."""
        self._write(self.segment_file(key), data + _seal(key, data))

    def _write(self, path: Path, data: bytes) -> None:
        with self._reported():
            write_atomically(path, data)
        # The folder's own clock: a file server's may be another, and the system's may have been set meanwhile.
        with contextlib.suppress(OSError):
            self._evict(path.stat().st_mtime)

    def _read(self, path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        data = _content(path)
        if data is None:
            return None
        try:
            tensors, metadata = load(data), header_of(data, path).metadata
            values = parse_object(metadata["values"], "its metadata")
            if metadata["version"] != str(VERSION):
                return None
            if metadata["checksum"] != fingerprint(metadata["values"], tensors) or values["key"] != key:
                raise ValueError("wrong checksum")
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._discard(path, error)
            return None
        _touch(path)
        return tensors, values

    def _discard(self, path: Path, error: Exception) -> None:
        log.warning("The stored file %s is damaged (%s); it is removed and made again.", path, reason(error))
        _remove(path)

    @contextlib.contextmanager
    def _reported(self) -> Any:
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
            remedy = "free space there" if is_full else "check what lies there and its permissions"
            raise HeliosError(
                f"chunk store {self.folder} cannot be written ({error.strerror or reason(error)}); {remedy} or "
                "choose another folder, then run again: finished chunks are kept."
            ) from error

    # -- takes ---------------------------------------------------------------------------------------

    @property
    def takes(self) -> Path:
        return self.folder / "takes"

    def write_manifest(self, name: str, manifest: dict[str, Any], durable: bool = False) -> None:
        """Writes ``takes/<name>.json``; ``durable`` also against power loss. Raises as :meth:`put_chunk`."""
        with self._reported():
            make_folder(self.takes)
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            write_atomically(self.takes / f"{name}.json", text.encode("utf-8", "surrogatepass"), durable)

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of all takes, by name."""
        return [manifest for _, manifest in self._manifest_files()]

    def _manifest_files(self) -> list[tuple[Path, dict[str, Any]]]:
        found = []
        for path in sorted(self.takes.glob("*.json")):
            with contextlib.suppress(HeliosError):  # removed meanwhile, or edited by hand
                found.append((path, read_object(path)))
        return found

    # -- size ----------------------------------------------------------------------------------------

    def touch(self, keys: Iterable[str]) -> None:
        """Marks chunks as used now, which a running take does at every chunk so that eviction spares them."""
        for key in keys:
            _touch(self.chunk_file(key))
            _touch(self.segment_file(key))

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """Files of the store with their state, used longest ago first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                # Another process may remove a file between the listing and here.
                with contextlib.suppress(OSError):
                    if _OWN_NAME.fullmatch(entry.name):
                        found.append((Path(entry.path), entry.stat()))
        return sorted(found, key=lambda item: item[1].st_mtime)

    def size(self) -> int:
        """Bytes in use."""
        return sum(state.st_size for _, state in self.files())

    def _evict(self, now: float) -> None:
        files = self.files()
        size = sum(state.st_size for _, state in files)
        for path, state in files:
            if state.st_mtime > now + CLOCK_SECONDS:
                _touch(path)  # the clock was set back; this file would stay until it is there again
            elif _abandoned(path, state, now) or (
                size > self.max_bytes and state.st_mtime < now - self.grace and path.suffix != PART_SUFFIX
            ):
                _remove(path)
                size -= state.st_size

    def clear(self) -> int:
        """Removes every chunk, segment and manifest; returns the bytes freed."""
        now = time.time()
        files = [entry for entry in self.files() if entry[0].suffix != PART_SUFFIX or _abandoned(*entry, now)]
        manifests = [path for path, take in self._manifest_files() if take.get("format") == TAKE_FORMAT]
        for path in (*(path for path, _ in files), *manifests):
            _remove(path)
        return sum(state.st_size for _, state in files)


def _abandoned(path: Path, state: os.stat_result, now: float) -> bool:
    """Whether a half-written file belongs to a process that was killed; a living one is done in a moment."""
    return path.suffix == PART_SUFFIX and state.st_mtime < now - GRACE_SECONDS


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes ``path`` whole or not at all; ``durable`` also against power loss."""
    temporary = path.with_name(f"{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def make_folder(folder: Path) -> None:
    """Makes ``folder`` and those above it, so that a power loss does not take them with all they hold."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` durable; Windows needs and offers no such thing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(path: Path) -> bytes | None:
    """A stored file's bytes; None where there is none, or a link, a device or a pipe under its name."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("The stored file %s cannot be read (%s); it is made again.", path, error.strerror)
        return None


def _seal(key: str, data: bytes) -> bytes:
    """What follows an MP4's bytes in its file, so that damage shows: their checksum, in a box that players skip."""
    return struct.pack(">I4s", SEAL_BYTES, b"free") + fingerprint(FORMAT, key, data).encode()


def _packed(key: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"key": key, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values})
    checksum = fingerprint(text, tensors)
    return save(tensors, {"format": FORMAT, "version": str(VERSION), "values": text, "checksum": checksum})


def _stored_chunk(key: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> Chunk:
    plain = values.get("history")
    parts = {name.removeprefix("history."): value for name, value in tensors.items() if name.startswith("history.")}
    if not isinstance(plain, dict):
        raise HeliosError("it holds no history")
    history = History.from_parts({**plain, **parts}, "it", of_any_device=True)
    latents = tensors.get("chunk")
    if latents is None or latents.shape != history.chunk_shape or not latents.is_floating_point():
        raise HeliosError("it holds no chunk")
    return Chunk(history.chunk - 1, latents, history, key, reused=True)


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _remove(path: Path) -> None:
    # Gone already, or open elsewhere on Windows: the next clean-up meets it again.
    with contextlib.suppress(OSError):
        path.unlink()
