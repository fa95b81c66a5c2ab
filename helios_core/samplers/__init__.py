"""Samplers: schedules and solvers as plain functions over ``velocity(latents, timestep)``."""

from .base import BaseSampler
from .dmd import DMDSampler
from .noise import draw_noise, moved
from .pyramid import PyramidSampler
from .schedule import SchedulerConfig
from .solvers import SOLVERS
from .step import OnStep, Progress, Velocity

__all__ = [
    "SOLVERS",
    "BaseSampler",
    "DMDSampler",
    "OnStep",
    "Progress",
    "PyramidSampler",
    "SchedulerConfig",
    "Velocity",
    "draw_noise",
    "moved",
]
