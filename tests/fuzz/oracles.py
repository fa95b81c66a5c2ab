"""What may come of hostile input: the right result, or one sentence that names the input and the cure."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from hypothesis import currently_in_test_context, event
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from helios_core.errors import HeliosError

T = TypeVar("T")
HANG_SECONDS = 30
# What a loader may take beside twice the file: the small models themselves, threads, the allocator's arenas.
ALLOWANCE = 512 * 2**20
LONGEST_SENTENCE = 1200
_RAW = re.compile(
    r"Traceback|object has no attribute|unsupported operand|has no len\(\)|not subscriptable|not iterable"
    r"|unhashable type|positional argument|unexpected keyword|index out of range|<class '|NoneType"
)


class Hang(BaseException):
    """Not an Exception, so that nothing under test takes it for its own."""


@contextlib.contextmanager
def bounded(file_bytes: int = 0) -> Iterator[None]:
    """Fails the test where the block takes longer than a hang's limit, or more memory than twice its input."""
    begun = time.monotonic()
    with _alarm(), _address_space(2 * file_bytes + ALLOWANCE):
        yield
    assert time.monotonic() - begun < HANG_SECONDS, "a hang"


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise Hang(f"not done after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _address_space(allowance: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [used + allowance, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_sentence(message: str, *names: str) -> None:
    """One line that a user can act on; it holds one of ``names``, where any are given."""
    assert message.strip() and "\n" not in message.strip(), f"not one line: {message!r:.2000}"
    assert len(message) <= LONGEST_SENTENCE, f"{len(message)} characters: {message!r:.300}"
    assert not _RAW.search(message), f"Python's own words: {message!r}"
    assert message.rstrip().endswith((".", ")")), f"no sentence: {message!r}"
    assert re.search(r"[;:,]", message), f"no remedy: {message!r}"
    if names:
        assert any(name in message for name in names), f"none of {names} is named: {message!r}"


def outcome(load: Callable[[], T], *names: str, size: int = 0) -> T | None:
    """The result of ``load``, or None where it refused the input as it should."""
    try:
        with bounded(size):
            result = load()
    except HeliosError as error:
        check_sentence(str(error), *names)
        count("refused")
        return None
    count("accepted")
    return result


def count(what: str) -> None:
    """Shown by ``--hypothesis-show-statistics``."""
    if currently_in_test_context():
        event(what)


def library_reads(data: bytes) -> dict[str, Tensor] | None:
    """What the safetensors library makes of a file; None where it refuses it."""
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError, RuntimeError, TypeError):
        return None


def check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None) -> None:
    """Bit for bit the tensors that an independent reader finds."""
    assert expected is not None, f"{sorted(found)[:5]} were read from a file that safetensors refuses"
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        same = expected[name]
        assert (tensor.dtype, tensor.shape) == (same.dtype, same.shape), name
        assert _bytes(tensor) == _bytes(same), name


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below ``folder`` with its size and time, to see that nothing was written there."""
    found: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[path.relative_to(folder).as_posix()] = (state.st_size, state.st_mtime_ns)
    return found


def finite(value: Any) -> bool:
    return bool(torch.isfinite(value).all())
