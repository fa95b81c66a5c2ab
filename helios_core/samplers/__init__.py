"""Samplers: schedules and solvers as plain functions over ``velocity(latents, timestep)``."""

from .base_sampler import BaseSampler
from .choose import sampler_of
from .dmd_sampler import DMDSampler
from .end_frame import EndFrame, check_end_frames, end_frames, in_force
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
    "EndFrame",
    "OnStep",
    "Progress",
    "PyramidSampler",
    "SchedulerConfig",
    "Velocity",
    "check_end_frames",
    "draw_noise",
    "end_frames",
    "in_force",
    "noise_to",
    "sampler_of",
]
