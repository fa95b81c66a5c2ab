"""Memory that hardly grows with a film: what a chunk has freed goes back to the system before more is asked for.

Decoding on a processor makes and frees hundreds of tensors of up to 32 MB, which glibc takes from its heaps. A thread
other than the main one, like the one in which ComfyUI runs graphs, has heaps of 64 MiB, of which glibc returns the last
alone by itself: a small object at the end of one pins all before it. Other C libraries are left alone.

Measured in ComfyUI on two processors (helios-tiny, 8 and 44 chunks): peaks of 1,338 and 1,369 MiB at 320x192; at
640x384 2,338 and 2,370 MiB, returned once a chunk. A chunk's peak varies by 160 MiB at random (by 70 with one heap
for all threads, MALLOC_ARENA_MAX=1); between chunks nothing grows. Tensors from 4 MiB on as blocks of their own,
which glibc returns at once, would keep the peak of 44 chunks at that of 8, and cost 6 % of the film's time at 640x384
and 20 % at 320x192. A graphics card's memory is not glibc's.
"""

from __future__ import annotations

import ctypes
import sys


def return_freed() -> None:
    """What was freed goes back to the system."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
