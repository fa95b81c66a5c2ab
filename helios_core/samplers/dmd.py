"""The Distilled sampler: a few DMD steps in each of three pyramid stages (DESIGN section 6.4, 6.6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import HeliosError
from ..history import PIXELS_PER_TOKEN
from .noise import coarsest, draw_block_noise, upsampled
from .schedule import SchedulerConfig, Stage, StepSchedule, dmd_schedule, dynamic_shift, stage_tables

PATCH_AREA = 4  # latent pixels per token

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents [B,16,T,h,w], timestep [B]) -> velocity of the same shape as the latents."""


@dataclass(frozen=True)
class Progress:
    """One finished step: ``step`` of ``total`` in this chunk, its ``stage``, and the x0 predicted there."""

    step: int
    total: int
    stage: int
    x0: Tensor


OnStep = Callable[[Progress], None]


@dataclass(frozen=True)
class DMDSampler:
    """Settings of the Distilled sampler; the defaults are the released ones.

    ``steps`` per stage; ``amplify_first_chunk`` doubles them in chunk 0.
    """

    steps: tuple[int, ...] = (2, 2, 2)
    amplify_first_chunk: bool = True
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    variant = "distilled"

    def __post_init__(self) -> None:
        check_steps(self.steps, self.scheduler.stages)

    @property
    def size_multiple(self) -> int:
        """Pixels that width and height must be divisible by."""
        return PIXELS_PER_TOKEN * 2 ** (self.scheduler.stages - 1)

    def total_steps(self, chunk: int) -> int:
        """Network steps in chunk number ``chunk``."""
        return sum(self.steps) * (2 if self.amplify_first_chunk and chunk == 0 else 1)

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        generator: torch.Generator,
        chunk: int,
        on_step: OnStep | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Denoises one chunk.

        Args:
            velocity: the network, guidance included.
            noise: [B,16,9,H/8,W/8] float32 at full resolution.
            generator: draws the block noise of stages 1 and up, in that order.
            chunk: the chunk's index; only 0 is amplified.
            dtype: the network's type; x0 is rounded to it, as the reference does.

        Returns:
            The chunk's latents [B,16,9,H/8,W/8], normalised model space.
        """
        amplified = self.amplify_first_chunk and chunk == 0
        total, done = self.total_steps(chunk), 0
        latents = coarsest(noise, self.scheduler.stages)
        for index, stage in enumerate(stage_tables(self.scheduler)):
            # Counted before the upsample: the reference's order of operations (DESIGN section 6.1).
            mu = dynamic_shift(latents[0, 0].numel() // PATCH_AREA)
            schedule = dmd_schedule(self.scheduler, stage, self.steps[index], mu, amplified)
            if index > 0:
                latents = start_point(latents, stage, self.scheduler.gamma, generator, dtype)
            start = latents
            for step, timestep in enumerate(schedule.timesteps):
                v = velocity(latents, torch.full(latents.shape[:1], int(timestep), device=latents.device))
                x0 = predicted_x0(latents, v, schedule.sigmas[_nearest(schedule, timestep)], dtype)
                last = step == len(schedule.timesteps) - 1
                latents = x0 if last else renoised(x0, start, _next_sigma(schedule, step))
                done += 1
                if on_step is not None:
                    on_step(Progress(done, total, index, x0))
        return latents


def check_steps(steps: tuple[int, ...], stages: int) -> None:
    """Refuses a step list that does not give every stage at least one step."""
    if len(steps) != stages or any(n < 1 for n in steps):
        raise HeliosError(f"steps={list(steps)} does not fit; give {stages} numbers of at least 1, one per stage.")


def start_point(latents: Tensor, stage: Stage, gamma: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A stage's initial noisy latent: the previous stage's result upsampled, plus block noise."""
    latents = upsampled(latents)
    noise = draw_block_noise(tuple(latents.shape), gamma, generator).to(latents.device, dtype)
    return stage.renoise_signal * latents + stage.renoise_noise * noise


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


def _next_sigma(schedule: StepSchedule, step: int) -> float:
    return schedule.sigmas[_nearest(schedule, schedule.timesteps[step + 1])]


def _nearest(schedule: StepSchedule, timestep: float) -> int:
    """The reference looks a sigma up by its timestep truncated to an integer, so dense schedules may shift one."""
    return min(range(len(schedule.timesteps)), key=lambda i: abs(schedule.timesteps[i] - int(timestep)))
