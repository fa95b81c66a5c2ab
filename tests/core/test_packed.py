"""GGUF's packed numbers, against the gguf package's own arithmetic."""

import gguf
import numpy as np
import pytest
import torch

from helios_core.checkpoint.packed import FORMS, pack, unpack

ROWS = 40


def numbers() -> torch.Tensor:
    """Weights as they are, and blocks that rounding meets seldom: zeros, one sign, halves, one large number."""
    made = torch.randn(ROWS, 96, generator=torch.Generator().manual_seed(1)) * 0.02
    made[0] = 0
    made[1] = made[1].abs()
    made[2] = -made[2].abs()
    made[3] = torch.arange(96) / 2
    made[4, 5] = 1000.0
    return made


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_packs_and_unpacks_as_ggml(form):
    kind = gguf.GGMLQuantizationType(form.number)
    theirs = gguf.quants.quantize(numbers().numpy(), kind)
    assert gguf.GGML_QUANT_SIZES[kind] == (32, form.nbytes) and kind.name.lower() == form.name
    packed = pack(form, numbers())
    assert packed.shape == theirs.shape == form.packed_shape((ROWS, 96))
    assert torch.equal(packed, torch.from_numpy(theirs))
    assert np.array_equal(unpack(form, packed).numpy(), gguf.quants.dequantize(theirs, kind))
    assert torch.equal(unpack(form, packed, torch.bfloat16), unpack(form, packed).bfloat16())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rounding_by_chance_keeps_the_mean(form):
    """A change of a twentieth of a step is lost to plain rounding, and kept on average by chance."""
    plain = unpack(form, pack(form, numbers()[5:]))
    step = (plain.abs().view(-1, 32).amax(1) / 2 ** (form.bits - 1)).view(-1, 1)
    inner = plain.view(-1, 32).abs() < plain.abs().view(-1, 32).amax(1, keepdim=True) * 0.8
    changed = (plain.view(-1, 32) + step / 20 * inner).view(plain.shape)
    mean = torch.stack([unpack(form, pack(form, changed, seed)) for seed in range(200)]).mean(0)
    kept = ((mean - plain).view(-1, 32) * inner / step).sum() / inner.sum()
    assert 0.03 < kept < 0.07
    assert torch.equal(pack(form, changed, 7), pack(form, changed, 7))


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_same_on_a_gpu(form):
    packed = pack(form, numbers())
    assert torch.equal(unpack(form, packed.cuda()).cpu(), unpack(form, packed))
    again = unpack(form, pack(form, numbers().cuda())).cpu()
    assert (again - unpack(form, packed)).abs().max() <= numbers().abs().max() / 2 ** (form.bits - 1)
