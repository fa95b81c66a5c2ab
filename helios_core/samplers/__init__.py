"""Samplers: schedules and solvers as plain functions over ``velocity(latents, timestep)``."""

from .base_sampler import BaseSampler
from .choose import sampler_of
from .dmd_sampler import DMDSampler
from .noise import draw_noise, noise_to
from .pyramid_sampler import PyramidSampler
from .sampler import ChunkSampler
from .schedule import SchedulerConfig
from .solvers import SOLVERS
from .step import OnStep, Progress, Velocity

__all__ = [
    "SOLVERS",
    "BaseSampler",
    "ChunkSampler",
    "DMDSampler",
    "OnStep",
    "Progress",
    "PyramidSampler",
    "SchedulerConfig",
    "Velocity",
    "draw_noise",
    "noise_to",
    "sampler_of",
]
