"""The Base sampler: one stage at full resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HeliosError
from ..variants import BASE, PIXELS_PER_TOKEN
from .schedule import SchedulerConfig, base_schedule, dynamic_shift, stage_tables
from .solvers import check_solver, solve
from .stages import check_steps, token_count
from .step import OnStep, Steer, StepReporter, Velocity, steered

RELEASED = SchedulerConfig.from_dict(BASE.scheduler)


@dataclass(frozen=True)
class BaseSampler:
    """Settings of the Base sampler; the defaults are the released ones. ``solver`` is ``unipc`` or ``euler``."""

    steps: tuple[int, ...] = BASE.steps
    solver: str = "unipc"
    scheduler: SchedulerConfig = RELEASED

    variant = BASE.name
    zero_star = BASE.zero_star
    size_multiple = PIXELS_PER_TOKEN

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if self.scheduler.stages != 1:
            raise HeliosError(f"stages={self.scheduler.stages} does not fit Base; it has 1 stage.")
        check_steps(self.steps, 1)

    def total_steps(self, chunk: int) -> int:
        """Steps in chunk number ``chunk``: the same in all."""
        return self.steps[0]

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
        """See :meth:`.sampler.ChunkSampler.sample`; Euler rounds its latents to ``dtype``, UniPC's stay float32."""
        schedule = base_schedule(self.scheduler, self.steps[0], dynamic_shift(token_count(noise)))
        reporter = StepReporter(self.total_steps(chunk), on_step)

        def report(x0: Tensor) -> None:
            reporter.report(0, x0)

        (stage,) = stage_tables(self.scheduler)
        predict = steered(velocity, steer, schedule.sigmas, stage)
        return solve(self.solver, schedule.sigmas, schedule.timesteps, predict, noise, dtype, report)
