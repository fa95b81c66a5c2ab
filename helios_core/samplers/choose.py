"""The sampler that a variant was trained for."""

from __future__ import annotations

from collections.abc import Sequence

from ..variants import VARIANTS
from .base_sampler import BaseSampler
from .dmd_sampler import DMDSampler
from .pyramid_sampler import PyramidSampler
from .sampler import ChunkSampler
from .schedule import SchedulerConfig


def sampler_of(
    variant: str,
    scheduler: SchedulerConfig,
    zero_star: bool,
    num_inference_steps: int | None = None,
    pyramid_num_inference_steps_list: Sequence[int] | None = None,
    solver: str = "unipc",
    use_zero_init: bool = True,
    zero_steps: int = 1,
    is_amplify_first_chunk: bool = True,
) -> ChunkSampler:
    """The variant's sampler by diffusers' keywords; those of other variants have no effect, as in the reference."""
    released = VARIANTS[variant].steps
    steps = tuple(pyramid_num_inference_steps_list or released)
    if variant == BaseSampler.variant:
        return BaseSampler((num_inference_steps or released[0],), solver, scheduler)
    if variant == PyramidSampler.variant:
        return PyramidSampler(steps, solver, zero_star, use_zero_init, zero_steps, scheduler)
    return DMDSampler(steps, is_amplify_first_chunk, scheduler)
