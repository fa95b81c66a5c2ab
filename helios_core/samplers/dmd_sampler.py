"""The Distilled sampler: a few DMD steps in each of three pyramid stages, each re-noised toward the start point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..variants import DISTILLED
from .schedule import SchedulerConfig, Stage, StepSchedule, dmd_schedule
from .stages import check_steps, denoise_stages, pyramid_size_multiple
from .step import OnStep, Steer, StepReporter, Velocity, batched, steered

RELEASED = SchedulerConfig.from_dict(DISTILLED.scheduler)


@dataclass(frozen=True)
class DMDSampler:
    """Settings of the Distilled sampler; the defaults are the released ones.

    ``steps`` per stage; ``amplify_first_chunk`` doubles them in chunk 0.
    """

    steps: tuple[int, ...] = DISTILLED.steps
    amplify_first_chunk: bool = True
    scheduler: SchedulerConfig = RELEASED

    variant = DISTILLED.name
    zero_star = DISTILLED.zero_star

    def __post_init__(self) -> None:
        check_steps(self.steps, self.scheduler.stages)

    @property
    def size_multiple(self) -> int:
        """Pixels that width and height must be divisible by."""
        return pyramid_size_multiple(self.scheduler.stages)

    def total_steps(self, chunk: int) -> int:
        """Network steps in chunk number ``chunk``."""
        return sum(self.steps) * (2 if self.amplify_first_chunk and chunk == 0 else 1)

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        generator: torch.Generator,
        chunk: int,
        guided: bool = False,
        on_step: OnStep | None = None,
        dtype: torch.dtype = torch.float32,
        steer: Steer | None = None,
    ) -> Tensor:
        """See :meth:`.sampler.ChunkSampler.sample`; chunk 0 is amplified, x0 is rounded to ``dtype``."""
        amplified = self.amplify_first_chunk and chunk == 0
        reporter = StepReporter(self.total_steps(chunk), on_step)

        def denoise(index: int, stage: Stage, mu: float, start: Tensor) -> Tensor:
            schedule = dmd_schedule(self.scheduler, stage, self.steps[index], mu, amplified)
            sigmas = [schedule.sigmas[_nearest(schedule, timestep)] for timestep in schedule.timesteps]
            predict = steered(velocity, steer, sigmas, stage)
            latents = start
            for step, timestep in enumerate(schedule.timesteps):
                v = predict(latents, batched(int(timestep), latents))
                x0 = predicted_x0(latents, v, sigmas[step], dtype)
                last = step == len(schedule.timesteps) - 1
                latents = x0 if last else renoised(x0, start, sigmas[step + 1])
                reporter.report(index, x0)
            return latents

        return denoise_stages(self.scheduler, noise, generator, dtype, denoise)


def predicted_x0(latents: Tensor, velocity: Tensor, sigma: float, dtype: torch.dtype) -> Tensor:
    """x - sigma*v in float64, rounded to the network's type."""
    wide = solver_dtype(latents.device)
    return (latents.to(wide) - sigma * velocity.to(wide)).to(dtype)


def renoised(x0: Tensor, start: Tensor, sigma: float) -> Tensor:
    """Back to noise level ``sigma``, towards the stage's start point rather than fresh noise."""
    wide = solver_dtype(x0.device)
    return ((1 - sigma) * x0.to(wide) + sigma * start.to(wide)).to(start.dtype)


def solver_dtype(device: torch.device) -> torch.dtype:
    """float64 as in the reference; Apple's GPUs have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _nearest(schedule: StepSchedule, timestep: float) -> int:
    """The reference looks a sigma up by its timestep truncated to an integer, so dense schedules may shift one."""
    return min(range(len(schedule.timesteps)), key=lambda i: abs(schedule.timesteps[i] - int(timestep)))
