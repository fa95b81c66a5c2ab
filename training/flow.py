"""Where training's noisy latents come from: the straight path of stage 1 and the pyramid's paths of stage 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from helios_core.samplers import SchedulerConfig
from helios_core.samplers.noise import upsampled
from helios_core.samplers.schedule import STAGE_SIGMA_MAX, dynamic_shift, shifted, stage_tables
from helios_core.samplers.stages import token_count

PYRAMID = SchedulerConfig(time_shift_type="exponential")


@dataclass(frozen=True)
class Path:
    """The straight path of one pyramid stage: sigma 1 is its start point, 0 its end point.

    ``start`` and ``end`` are how much noise those two points hold themselves (s and e in the paper's appendix).
    """

    start: float
    end: float
    timestep_max: float
    timestep_min: float


def paths(config: SchedulerConfig = PYRAMID) -> list[Path]:
    """The stages' paths, coarsest first, from the tables that the samplers use."""
    stages = stage_tables(config)
    # A stage ends at the noise that the next one's upsampled part holds: beta = alpha * sigma / sqrt(gamma).
    ends = [s.renoise_noise * config.gamma**0.5 / s.renoise_signal for s in stages[1:]] + [0.0]
    starts = [1.0] + [1 - s.renoise_signal * (1 - end) for s, end in zip(stages[1:], ends, strict=False)]
    return [
        Path(start, end, stage.timestep_max, stage.timestep_min)
        for start, end, stage in zip(starts, ends, stages, strict=True)
    ]


def halved(latents: Tensor) -> Tensor:
    """[B,C,T,h,w] -> [B,C,T,h/2,w/2], bilinear."""
    b, t = latents.shape[0], latents.shape[2]
    frames = latents.transpose(1, 2).flatten(0, 1)
    small = F.interpolate(frames, size=(frames.shape[-2] // 2, frames.shape[-1] // 2), mode="bilinear")
    return small.unflatten(0, (b, t)).transpose(1, 2)


def end_points(clean: Tensor, noise: Tensor, stage: int, config: SchedulerConfig = PYRAMID) -> tuple[Tensor, Tensor]:
    """Start and end point of a stage for clean latents and noise [B,16,9,h,w] of full resolution."""
    path = paths(config)[stage]
    for _ in range(config.stages - 1 - stage):
        clean, noise = halved(clean), 2 * halved(noise)
    start = noise
    if stage > 0:
        start = path.start * noise + (1 - path.start) * upsampled(halved(clean))
    return start, path.end * noise + (1 - path.end) * clean


def stage_sigmas(uniform: Tensor, latents: Tensor, config: SchedulerConfig = PYRAMID) -> Tensor:
    """Uniform numbers [B] -> sigmas within a stage, spread as the sampler's steps are at this size."""
    tokens = token_count(latents)
    mu = dynamic_shift(tokens)
    return torch.tensor([shifted(max(float(u) * STAGE_SIGMA_MAX, 1e-4), mu, config.time_shift_type) for u in uniform])


def per_sample(values: Tensor) -> Tensor:
    """[B] -> [B,1,1,1,1]."""
    return values.view(-1, 1, 1, 1, 1)
