"""Base's and Mid's schedules and solvers against diffusers' HeliosScheduler, and the samplers' own rules."""

import numpy as np
import pytest
import torch
from diffusers import HeliosScheduler

from helios_core.errors import HeliosError
from helios_core.samplers import BaseSampler, PyramidSampler, SchedulerConfig
from helios_core.samplers.guidance import guide_zero_star
from helios_core.samplers.schedule import base_schedule, pyramid_schedule, stage_tables
from helios_core.samplers.solvers import solve

STEPS = [1, 2, 3, 5, 20]
RANGES = {1: (0, 1), 2: (0, 0.4, 1), 3: (0, 1 / 3, 2 / 3, 1), 4: (0, 0.25, 0.5, 0.75, 1)}
MU = 0.8
# The reference rounds sigma itself to bfloat16, as a tensor of no dimensions; ours stays exact.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def both_schedules(stages, stage, steps, scheduler_type="unipc", gamma=1 / 3):
    shared = {"stages": stages, "gamma": gamma, "time_shift_type": "exponential", "use_dynamic_shifting": True}
    theirs = HeliosScheduler(**shared, stage_range=list(RANGES[stages]), scheduler_type=scheduler_type)
    config = SchedulerConfig(**shared, stage_range=RANGES[stages])
    if stages == 1:
        theirs.set_timesteps(steps, sigmas=np.linspace(0.999, 0.0, steps + 1)[:-1], mu=MU)
        return theirs, base_schedule(config, steps, MU)
    theirs.set_timesteps(steps, stage, mu=MU)
    return theirs, pyramid_schedule(config, stage_tables(config)[stage], steps, MU)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("gamma", [0.2, 1 / 3])
@pytest.mark.parametrize(("stages", "stage"), [(n, i) for n in RANGES for i in range(n)])
def test_schedule(stages, stage, steps, gamma):
    theirs, ours = both_schedules(stages, stage, steps, gamma=gamma)
    assert np.allclose(ours.timesteps, theirs.timesteps, rtol=0, atol=1e-9)
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=0, atol=1e-12)
    if stages > 1:
        assert [int(t) for t in ours.timesteps] == theirs.timesteps.to(torch.int64).tolist()


@pytest.mark.parametrize("solver", ["unipc", "euler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("steps", STEPS)
def test_solver_step_by_step(solver, dtype, stages, steps):
    """Velocities of the network's type, unrelated to the latents, so that no error can cancel."""
    theirs, ours = both_schedules(stages, 0, steps, solver)
    random = torch.Generator().manual_seed(steps)
    start = torch.randn(2, 4, 3, 2, 2, generator=random)
    velocities = [torch.randn(start.shape, generator=random).to(dtype) for _ in range(steps)]

    expected, given, seen = start, [start], []
    for timestep, v in zip(theirs.timesteps, velocities, strict=True):
        expected = theirs.step(v, timestep, expected, return_dict=False)[0]
        given.append(expected)

    def velocity(latents, timestep):
        seen.append(latents)
        return velocities[len(seen) - 1]

    reported = []
    result = solve(solver, ours.sigmas, ours.timesteps, velocity, start, dtype, reported.append)
    assert len(reported) == steps
    for mine, reference in zip([*seen, result], given, strict=True):
        assert mine.dtype == reference.dtype
        assert (mine.double() - reference.double()).abs().max() / start.std() <= TOLERANCE[dtype]


class Recorder:
    """A velocity that remembers when it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, latents, timestep):
        self.calls.append((latents, timestep))
        return 0.3 * latents


def sampled(sampler, guided=False, dtype=torch.float32, size=8):
    recorder, steps = Recorder(), []
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 16, 9, size, size, generator=generator)
    latents = sampler.sample(recorder, noise, generator, 0, guided=guided, on_step=steps.append, dtype=dtype)
    assert latents.shape == noise.shape
    assert [step.step for step in steps] == list(range(1, sampler.total_steps(0) + 1))
    return latents, recorder.calls, steps


@pytest.mark.parametrize(
    ("changes", "guided", "calls"),
    [
        ({}, True, 7),
        ({}, False, 9),
        ({"zero_init": False}, True, 9),
        ({"zero_star": False}, True, 9),
        ({"zero_steps": 0}, True, 8),
        ({"zero_steps": 5}, True, 6),
    ],
)
def test_zero_steps_are_inclusive_in_stage_0_and_need_guidance(changes, guided, calls):
    _, seen, steps = sampled(PyramidSampler(steps=(3, 3, 3), **changes), guided)
    assert len(seen) == calls
    assert [step.stage for step in steps] == [0] * 3 + [1] * 3 + [2] * 3


def test_timesteps_are_integers_in_the_pyramid_only():
    _, pyramid, _ = sampled(PyramidSampler(steps=(2, 2, 2)))
    _, base, _ = sampled(BaseSampler(steps=(3,)))
    assert {t.dtype for _, t in pyramid} == {torch.int64}
    assert {t.dtype for _, t in base} == {torch.float32}
    assert any(float(t[0]) % 1 for _, t in base)


@pytest.mark.parametrize("sampler", [BaseSampler(steps=(3,)), PyramidSampler(steps=(2, 2, 2))])
def test_unipc_latents_stay_float32_beside_a_bfloat16_network(sampler):
    latents, calls, _ = sampled(sampler, dtype=torch.bfloat16)
    assert {x.dtype for x, _ in calls} == {torch.float32} == {latents.dtype}


def test_zero_star_gives_each_sample_its_own_fit():
    c, u = torch.randn(2, 2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = []
    for x, y in zip(c.double(), u.double(), strict=True):
        fitted = y * torch.linalg.lstsq(y.reshape(-1, 1), x.reshape(-1, 1)).solution
        expected.append(fitted + 5 * (x - fitted))
    assert (guide_zero_star(c, u, 5.0) - torch.stack(expected)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BaseSampler(solver="heun"), "solver='heun' is unknown"),
        (lambda: BaseSampler(steps=(0,)), r"steps=\[0\] does not fit"),
        (lambda: BaseSampler(scheduler=SchedulerConfig()), "stages=3 does not fit Base"),
        (lambda: PyramidSampler(steps=(3, 3)), r"steps=\[3, 3\] does not fit"),
        (lambda: PyramidSampler(zero_steps=-1), "zero_steps=-1 must be at least 0"),
        (lambda: PyramidSampler((5,), scheduler=SchedulerConfig(stages=1, stage_range=(0, 1))), "is no pyramid"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(HeliosError, match=message):
        make()
