"""The traffic benchmark: what it counts, and that our forward moves far less memory than diffusers'."""

import pytest
import torch
from helios_benchmarks.traffic import TrafficCounter, measure

LIMITS = {0: 0.45, 1: 0.45, 2: 0.40}


def counted(call):
    with torch.no_grad(), TrafficCounter() as counter:
        call()
    return counter.total


def test_counts_what_operators_read_and_write():
    x, y = torch.ones(8, 16), torch.ones(1, 16)
    size = 4 * 8 * 16
    assert counted(lambda: x + y) == 2 * size + 4 * 16
    assert counted(lambda: x + y.expand(8, 16)) == 2 * size + 4 * 16
    assert counted(lambda: x.clone().mul_(2)) == 4 * size
    assert counted(lambda: torch.add(x, y, out=torch.empty(8, 16))) == 2 * size + 4 * 16
    assert counted(lambda: x.view(16, 8).transpose(0, 1)[1:]) == 0
    assert counted(lambda: torch.empty(8, 16).copy_(x)) == 2 * size


# Two blocks of the released width; with 40, the last block counts for less.
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_moves_less_than_the_reference(device):
    if device == "cuda":
        pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")
        if torch.version.cuda is None:
            pytest.skip("this PyTorch knows no CUDA operators")
    for stage, (ours, theirs) in measure(device, num_layers=2).items():
        assert 0.05 < ours.total() / theirs.total() <= LIMITS[stage], stage
