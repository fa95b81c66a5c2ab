"""The walk through the pyramid's stages, shared by Mid and Distilled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import HeliosError, shortened
from ..variants import PIXELS_PER_TOKEN
from .noise import coarsest, draw_block_noise, noise_to, upsampled
from .schedule import SchedulerConfig, Stage, dynamic_shift, stage_tables

PATCH_AREA = 4  # latent pixels per token

DenoiseStage = Callable[[int, Stage, float, Tensor], Tensor]
"""(stage index, stage, mu, start point [B,16,9,h,w]) -> the stage's result of the same shape."""
# The timesteps that a stage has.
MOST_STEPS = 1000


def denoise_stages(
    config: SchedulerConfig, noise: Tensor, generator: torch.Generator, dtype: torch.dtype, denoise: DenoiseStage
) -> Tensor:
    """Full-resolution noise [B,16,9,H/8,W/8] -> the last stage's result, coarse to fine.

    ``generator`` draws the block noise of stages 1 and up, which is rounded to ``dtype``, the network's type.
    """
    latents = coarsest(noise, config.stages)
    for index, stage in enumerate(stage_tables(config)):
        # Counted before the upsample: the reference's order of operations.
        mu = dynamic_shift(token_count(latents))
        if index > 0:
            latents = start_point(latents, stage, config.gamma, generator, dtype)
        latents = denoise(index, stage, mu, latents)
    return latents


def start_point(latents: Tensor, stage: Stage, gamma: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A stage's initial noisy latent: the previous stage's result upsampled, plus block noise."""
    latents = upsampled(latents)
    noise = noise_to(draw_block_noise(tuple(latents.shape), gamma, generator), latents.device, dtype)
    return stage.renoise_signal * latents + stage.renoise_noise * noise


def token_count(latents: Tensor) -> int:
    """Noisy tokens of one sample of [B,16,T,h,w]."""
    return latents[0, 0].numel() // PATCH_AREA


def pyramid_size_multiple(stages: int) -> int:
    """Pixels that width and height must be divisible by, so that the coarsest stage has whole tokens."""
    return PIXELS_PER_TOKEN * 2 ** (stages - 1)


def check_steps(steps: tuple[int, ...], stages: int) -> None:
    """Refuses a step list that does not give every stage at least one step."""
    if len(steps) != stages or any(not 1 <= n <= MOST_STEPS for n in steps):
        raise HeliosError(
            f"steps={shortened(list(steps))} does not fit; give {stages} numbers of 1 to {MOST_STEPS}, one per stage."
        )
