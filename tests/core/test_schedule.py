"""Stage tables, schedules and noise against diffusers' schedulers and pipeline."""

import math

import numpy as np
import pytest
import torch
from diffusers import HeliosDMDScheduler
from helios_benchmarks.oracle import RELEASED_FACTOR, ReferencePyramid

from helios_core.errors import HeliosError
from helios_core.samplers import SchedulerConfig
from helios_core.samplers.noise import block_noise_factor, draw_block_noise
from helios_core.samplers.schedule import dmd_schedule, dynamic_shift, stage_tables

RELEASED = {"use_dynamic_shifting": True, "time_shift_type": "linear"}


@pytest.mark.parametrize("steps", [1, 2, 4, 30])
@pytest.mark.parametrize("amplified", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("tokens", [540, 2160, 36])
def test_dmd_schedule(steps, amplified, stage, tokens):
    scheduler = HeliosDMDScheduler(**RELEASED)
    mu = dynamic_shift(tokens)
    scheduler.set_timesteps(steps, stage, mu=mu, is_amplify_first_chunk=amplified)
    config = SchedulerConfig()
    ours = dmd_schedule(config, stage_tables(config)[stage], steps, mu, amplified)
    assert np.allclose(ours.timesteps, scheduler.timesteps, rtol=0, atol=1e-9)
    assert np.allclose(ours.sigmas, scheduler.sigmas, rtol=0, atol=1e-12)
    assert [int(t) for t in ours.timesteps] == scheduler.timesteps.to(torch.int64).tolist()


def test_released_figures():
    """The values of arXiv 2603.04379's released schedule at 384x640, computed by hand once."""
    config = SchedulerConfig()
    stages = stage_tables(config)
    assert [round(dynamic_shift(n), 5) for n in (540, 2160, 8640)] == [0.54807, 0.82229, 1.91917]
    assert [round(s.timestep_max, 2) for s in stages] == [999.0, 743.26, 385.61]
    assert [round(s.renoise_signal, 5) for s in stages[1:]] == [0.60012, 0.74981]
    assert [round(s.renoise_noise, 5) for s in stages[1:]] == [0.69261, 0.43334]
    two = [dmd_schedule(config, s, 2, dynamic_shift(n), False) for s, n in zip(stages, (540, 540, 2160), strict=True)]
    assert [[int(t) for t in s.timesteps] for s in two] == [[998, 833], [742, 512], [385, 174]]
    assert [round(x, 4) for x in two[0].sigmas] == [0.9982, 0.3540, 0.0]


def block_covariance(gamma):
    return (1 + gamma) * torch.eye(4, dtype=torch.float64) - gamma * torch.ones(4, 4, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.1, 1 / 3])
def test_block_noise_equals_reference(gamma):
    scheduler = HeliosDMDScheduler(**RELEASED, gamma=gamma)
    reference = ReferencePyramid(tokenizer=None, text_encoder=None, vae=None, transformer=None, scheduler=scheduler)
    shape = (2, 16, 9, 8, 12)
    expected = reference.sample_block_noise(*shape, generator=torch.Generator().manual_seed(5))
    result = draw_block_noise(shape, gamma, torch.Generator().manual_seed(5))
    assert (result - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("gamma", [0.01, 0.1, 0.25, 1 / 3])
def test_block_noise_factor_is_the_closed_form(gamma):
    """Row i of the factor: pivot sqrt(a - b_i) and -b_i / pivot below it, where b_i = a gamma / (a - i gamma)."""
    factor, a = block_noise_factor(gamma).double(), 1 + gamma
    assert torch.equal(factor, factor.tril())
    for i in range(4):
        b = a * gamma / (a - i * gamma)
        assert factor[i, i] ** 2 == pytest.approx(a - b, abs=2e-7)
        assert factor[i + 1 :, i].tolist() == pytest.approx([-b / factor[i, i].item()] * (3 - i), rel=1e-6)
    assert (factor @ factor.T - block_covariance(gamma)).abs().max() < 3e-7


def test_covariance_of_many_draws():
    """Within a 2x2 patch the drawn noise has the covariance that is asked for, and between patches none."""
    noise = draw_block_noise((1, 16, 9, 128, 128), 1 / 3, torch.Generator().manual_seed(0)).double()
    patches = noise.unfold(3, 2, 2).unfold(4, 2, 2).reshape(-1, 4)
    assert (patches.T.cov() - block_covariance(1 / 3)).abs().max() < 0.01
    assert (patches[1:] * patches[:-1]).mean(0).abs().max() < 0.01


def test_the_oracles_factor_is_a_factor_and_nearly_singular():
    product = RELEASED_FACTOR.double() @ RELEASED_FACTOR.double().T
    assert (product - block_covariance(1 / 3)).abs().max() < 3e-7
    assert 0 < RELEASED_FACTOR[3, 3] ** 2 < 2**-22


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"stages": 2}, "does not fit stages=2"),
        ({"stage_range": (0, 0.5, 0.4, 1)}, "must rise from 0 to 1"),
        ({"gamma": 0}, "gamma=0 must be above 0"),
        ({"gamma": math.nan}, "gamma=nan must be above 0"),
        ({"time_shift_type": "cubic"}, "'cubic' is unknown"),
        ({"use_dynamic_shifting": False}, "is not supported"),
    ],
)
def test_bad_scheduler_config_is_named(config, message):
    with pytest.raises(HeliosError, match=message):
        SchedulerConfig(**config)
