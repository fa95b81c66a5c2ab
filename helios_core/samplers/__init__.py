"""Samplers: schedules and solvers as plain functions over ``velocity(latents, timestep)``."""

from .dmd import DMDSampler, OnStep, Progress, Velocity
from .noise import draw_noise
from .schedule import SchedulerConfig

__all__ = ["DMDSampler", "OnStep", "Progress", "SchedulerConfig", "Velocity", "draw_noise"]
