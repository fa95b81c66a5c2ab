"""Memory that does not grow with a film: how glibc keeps what is freed on the way.

Decoding on a processor makes and frees hundreds of tensors of 4 to 32 MB. glibc takes them from its heaps, and a
thread other than the main one, like the one in which ComfyUI runs graphs, has heaps of 64 MiB, of which only the last
is ever returned: a small object at the end of one pins all before it. Blocks of their own, which glibc returns as
soon as they are freed, leave no such gaps. Other C libraries are left alone.

Measured on the command line (helios-tiny, 320x192, 8 and 44 chunks): peaks of 1,274 and 1,273 MiB, without it 1,281 and
1,460. It costs the clearing of pages: 184 seconds of processor time for 44 chunks, without it 164. A graphics card's
memory is not glibc's.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
# From this size on a tensor is a block of its own while a film is made: below, its pages cost more time than gaps.
FILM_THRESHOLD = 4 * 2**20
# The largest that glibc itself arrives at, as it adapts to what is freed.
USUAL_THRESHOLD = 32 * 2**20


def begin_film() -> None:
    """From now on, large tensors go back to the system when they are freed."""
    _glibc("mallopt", _M_MMAP_THRESHOLD, FILM_THRESHOLD)


def end_film() -> None:
    """Back to what is usual, with nothing of the film left in the heaps."""
    _glibc("mallopt", _M_MMAP_THRESHOLD, USUAL_THRESHOLD)
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), function, None)
        if found is not None:
            found(*arguments)
