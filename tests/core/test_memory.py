"""How the C library keeps freed tensors while a take runs."""

import subprocess
import sys

import pytest

# In a process of its own: the setting is the process's. A block of its own shows in glibc's count of them.
PROGRAM = """
import ctypes, sys, threading
import torch
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take

libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    sys.exit(77)


class Counts(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


libc.mallinfo2.restype = Counts


def own_blocks(mebibytes):
    before = libc.mallinfo2().hblks
    tensor = torch.empty(mebibytes * 2**20, dtype=torch.uint8)
    during = libc.mallinfo2().hblks
    del tensor
    assert libc.mallinfo2().hblks == before
    return during - before


def work():
    torch.empty(31 * 2**20, dtype=torch.uint8)  # glibc adapts: what is smaller lies in a heap from now on
    with Take(ChunkStore(sys.argv[1]), "take", {}):
        print(own_blocks(8), own_blocks(1))
    print(own_blocks(8))


thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_large_tensors_are_blocks_of_their_own_while_a_take_runs(tmp_path):
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    if run.returncode == 77:
        pytest.skip("not glibc")
    assert run.stdout.split() == ["1", "0", "0"], run.stderr
