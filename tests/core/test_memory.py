"""How the C library keeps freed tensors while a take runs."""

import subprocess
import sys

import pytest

# In a process of its own: what other tests have freed is returned too.
PROGRAM = """
import ctypes, sys, threading
import torch
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take

if not hasattr(ctypes.CDLL(None), "malloc_trim"):
    sys.exit(77)


def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) // 1024


def work():
    torch.empty(31 * 2**20, dtype=torch.uint8)  # glibc adapts: what is smaller lies in a heap from now on
    with Take(ChunkStore(sys.argv[1]), "take", {}) as take:
        tensors, small = [], []
        for _ in range(16):
            tensors.append(torch.ones(8 * 2**20, dtype=torch.uint8))
            small.append(torch.ones(64))
        tensors.clear()
        held = resident()

        def make():
            print(held - resident())
            raise SystemExit

        take.chunk("0" * 64, "", make)


thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_freed_between_chunks_goes_back_to_the_system(tmp_path):
    """16 tensors of 8 MiB with small ones behind each, on a thread, whose heaps glibc gives back from the end alone."""
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    if run.returncode == 77:
        pytest.skip("not glibc")
    assert int(run.stdout) >= 100, run.stderr
