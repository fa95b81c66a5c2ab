"""Mutated API graphs at POST /prompt of a real server: HTTP 400, one sentence, or a film of numbers."""

from __future__ import annotations

import pytest
import torch
from helios_fuzz_graphs import HISTORY, LORA, changed_graphs, graphs
from helios_fuzz_oracles import tree
from helios_fuzz_profiles import tries
from helios_fuzz_served import attempt
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from helios_core.take.history import History
from helios_core.take.history_file import save_history
from helios_setup.server import failure


@pytest.fixture(scope="module")
def known(abused):
    """All graphs and the nodes' schemas; the files that the graphs load lie ready."""
    base = abused.log_file.parent
    generator = torch.Generator().manual_seed(3)
    begun = History.empty(64, 64)
    save_history(
        begun.after(torch.randn(begun.chunk_shape, generator=generator), generator, 3), base / "input" / HISTORY
    )
    (base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    key = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 48), f"{key}.lora_up.weight": torch.ones(48, 2)},
              base / "models" / "loras" / LORA)  # fmt: skip
    (base / "output").mkdir(exist_ok=True)
    (base / "output" / "file.txt").write_text("a file where a folder could be")
    return graphs(), abused.object_info()


def outside(server) -> dict[str, tuple[int, int]]:
    """All that a graph may not write: everything but the output, temporary and user folders, and the log."""
    base = server.log_file.parent
    allowed = tuple(f"{base.name}/{name}" for name in ("output", "temp", "user", server.log_file.name))
    found = tree(base.parent)
    folders = {base.name, f"{base.name}/models", f"{base.name}/models/diffusers"}
    return {name: state for name, state in found.items() if not name.startswith(allowed) and name not in folders}


# The shipped ones have a test of their own.
@pytest.mark.parametrize("name", ["core", "render", "saved", "text"])
def test_unchanged(abused, known, name):
    """What is mutated runs: otherwise the tests below would refuse everything for one reason."""
    assert failure(abused.wait(abused.queue(known[0][name]), timeout=120)) is None


@tries(40)
@given(changed=st.data())
def test_changed(abused, known, changed):
    graph = changed.draw(changed_graphs(*known))
    before = outside(abused)
    attempt(abused, graph)
    assert outside(abused) == before, "written outside the output folder"
