"""Which attention kernel is chosen on which GPU generation, and that an installed one is called as it expects."""

import sys
import types

import pytest
import torch
from torch.nn import functional as F

from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer, attention_backends, choose_attention
from helios_core.networks.transformer.attention_backends import BACKENDS, sdpa_attention

ADA, HOPPER, BLACKWELL, CONSUMER_BLACKWELL = (8, 9), (9, 0), (10, 0), (12, 0)


@pytest.fixture
def machine(monkeypatch):
    """``machine(capability, *backends)``: a GPU of that generation, with these packages installed to record calls."""
    calls = []

    def kernel(q, k, v, **options):
        calls.append((tuple(q.shape), options))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def install(capability, *names):
        monkeypatch.setattr(attention_backends, "_generation", lambda _: capability and capability[0])
        for name, backend in BACKENDS.items():
            module = types.ModuleType(backend.module) if name in names else None
            if module is not None:
                setattr(module, backend.function, kernel)
                module.__spec__ = types.SimpleNamespace()
            monkeypatch.setitem(sys.modules, backend.module, module)
        monkeypatch.setattr(attention_backends.Backend, "installed", lambda self: bool(sys.modules[self.module]))
        return calls

    return install


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        (None, ("flash3", "flash4", "sage"), None),
        (ADA, ("flash3", "flash4", "sage"), None),
        (HOPPER, (), None),
        (HOPPER, ("sage",), None),
        (HOPPER, ("flash3", "flash4"), "flash3"),
        (HOPPER, ("flash4",), "flash4"),
        (BLACKWELL, ("flash3", "sage"), None),
        (BLACKWELL, ("flash3", "flash4"), "flash4"),
        (CONSUMER_BLACKWELL, ("flash3", "flash4", "sage"), None),
    ],
)
def test_auto_takes_no_kernel_of_another_generation(machine, capability, installed, expected):
    machine(capability, *installed)
    chosen = choose_attention("auto", "cuda")
    if expected is None:
        assert chosen is sdpa_attention
    else:
        module = sys.modules[BACKENDS[expected].module]
        kernel = getattr(module, BACKENDS[expected].function)
        assert kernel in [cell.cell_contents for cell in chosen.__closure__]


@pytest.mark.parametrize("name", list(BACKENDS))
def test_installed_kernels_give_the_plain_result(machine, name):
    calls = machine(HOPPER, name)
    q, k, v = (torch.randn(2, length, 6 * 16).bfloat16() for length in (7, 9, 9))
    result = choose_attention(name, "cuda")(q, k, v, 6)
    assert torch.equal(result, sdpa_attention(q, k, v, 6))
    assert calls == [((2, 7, 6, 16), dict(BACKENDS[name].options))]
    # They have no float32 kernels.
    choose_attention(name, "cuda")(q.float(), k.float(), v.float(), 6)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("capability", "installed", "name", "message"),
    [
        (HOPPER, (), "xformers", "attention='xformers' is unknown; use one of auto, sdpa, flash3, flash4, sage"),
        (HOPPER, (), "flash3", "needs the Python module flash_attn_interface; install it, or use sdpa"),
        (ADA, ("flash3",), "flash3", "kernels for compute capability 9.x, not for compute capability 8.x; use sdpa"),
        (None, ("sage",), "sage", "not for no CUDA device; use sdpa"),
    ],
)
def test_refuses_what_cannot_run(machine, capability, installed, name, message):
    machine(capability, *installed)
    with pytest.raises(HeliosError, match="attention=") as refused:
        choose_attention(name, "cuda")
    assert message in str(refused.value)


@torch.no_grad()
def test_real_probe_finds_nothing_on_a_cpu():
    assert choose_attention("auto", "cpu") is sdpa_attention
    config = {"num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 8, "ffn_dim": 32, "num_layers": 1}
    model = HeliosTransformer(**config, rope_dim=(8, 8, 8), attention=choose_attention())
    assert model.attention is sdpa_attention
