"""The Mid sampler: many steps in each of three pyramid stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HeliosError
from ..variants import MID
from .schedule import SchedulerConfig, Stage, pyramid_schedule
from .solvers import check_solver, solve
from .stages import check_steps, denoise_stages, pyramid_size_multiple
from .step import OnStep, Steer, StepReporter, Velocity, steered

RELEASED = SchedulerConfig.from_dict(MID.scheduler)


@dataclass(frozen=True)
class PyramidSampler:
    """Settings of the Mid sampler; the defaults are the released ones.

    ``steps`` per stage; ``solver`` is ``unipc`` or ``euler``. With ``zero_star`` the caller's guidance is
    :func:`.guidance.guide_zero_star`, and ``zero_init`` gives steps 0 to ``zero_steps`` inclusive of stage 0 a velocity
    of zero, where guidance is on.
    """

    steps: tuple[int, ...] = MID.steps
    solver: str = "unipc"
    zero_star: bool = MID.zero_star
    zero_init: bool = True
    zero_steps: int = 1
    scheduler: SchedulerConfig = RELEASED

    variant = MID.name

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if self.scheduler.stages < 2:
            raise HeliosError(f"stages={self.scheduler.stages} is no pyramid; use at least 2, or the Base sampler.")
        check_steps(self.steps, self.scheduler.stages)
        if self.zero_steps < 0:
            raise HeliosError(f"zero_steps={self.zero_steps} must be at least 0; zero_init off gives no zero step.")

    @property
    def size_multiple(self) -> int:
        """Pixels that width and height must be divisible by."""
        return pyramid_size_multiple(self.scheduler.stages)

    def total_steps(self, chunk: int) -> int:
        """Steps in chunk number ``chunk``, zero steps included: the same in all."""
        return sum(self.steps)

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
        """See :meth:`.sampler.ChunkSampler.sample`.

        ``velocity`` is not called in zero steps, which only guidance has. Block noise is rounded to ``dtype``, and
        Euler's latents; UniPC's stay float32.
        """
        reporter = StepReporter(self.total_steps(chunk), on_step)
        zero_steps = self.zero_steps + 1 if guided and self.zero_star and self.zero_init else 0

        def denoise(index: int, stage: Stage, mu: float, latents: Tensor) -> Tensor:
            schedule = pyramid_schedule(self.scheduler, stage, self.steps[index], mu)
            zeros = zero_steps if index == 0 else 0
            return solve(
                self.solver,
                schedule.sigmas,
                [int(timestep) for timestep in schedule.timesteps],
                zero_at_first(steered(velocity, steer, schedule.sigmas[zeros:], stage), zeros),
                latents,
                dtype,
                lambda x0: reporter.report(index, x0),
            )

        return denoise_stages(self.scheduler, noise, generator, dtype, denoise)


def zero_at_first(velocity: Velocity, count: int) -> Velocity:
    """``velocity`` with its first ``count`` calls answered by zeros instead of the network."""
    left = count

    def zero_or_velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        nonlocal left
        if left == 0:
            return velocity(latents, timestep)
        left -= 1
        return torch.zeros_like(latents)

    return zero_or_velocity
