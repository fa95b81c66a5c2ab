"""Stage 2: the pyramid. Most of the denoising happens at a quarter and a half of the resolution.

Stage i walks a straight path from s_i = sigma_s eps_i + (1 - sigma_s) up(x_(i-1)) to e_i = sigma_e eps_i +
(1 - sigma_e) x_i, where x_i and eps_i are the clean latents and the noise at its resolution; the target is s_i - e_i.
The result is Helios-Mid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from helios_core.networks.transformer import HeliosTransformer
from helios_core.samplers import PyramidSampler, SchedulerConfig

from .data import Clips, Drops, WorldClips
from .flow import PYRAMID, end_points, paths, per_sample, stage_sigmas
from .model import velocity
from .samples import sample_sheet
from .trainer import StepRandom, Task

# The paper's 1:2:1 spends most time on large latents. A small model learns what is where at the coarse ones.
STAGE_SHARES = (0.45, 0.35, 0.2)
BATCH_FACTORS = (3, 2, 1)


def drawn_stage(step: int, shares: Sequence[float]) -> int:
    """The stage of a step: the same in every process, so that none waits for another's larger latents."""
    at = StepRandom(1, step).uniform(())
    return int(torch.searchsorted(torch.tensor(shares).cumsum(0), at).clamp(max=len(shares) - 1))


class Stage2(Task):
    """Velocity regression inside one pyramid stage per step; coarse stages have larger batches."""

    def __init__(
        self,
        model: HeliosTransformer,
        clips: Clips,
        batch: int = 8,
        drops: Drops | None = None,
        scheduler: SchedulerConfig = PYRAMID,
        checkpointed: bool = False,
        shares: Sequence[float] = STAGE_SHARES,
    ):
        super().__init__(model)
        self.model, self.clips, self.drops = model, clips, drops or Drops()
        self.scheduler, self.checkpointed, self.shares = scheduler, checkpointed, shares
        self.size = batch
        self.batch = round(batch * sum(s * f for s, f in zip(shares, BATCH_FACTORS, strict=True)))
        self.paths = paths(scheduler)

    def loss(self, step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        stage = drawn_stage(step, self.shares)
        batch = self.clips.batch(random, self.size * BATCH_FACTORS[stage], self.drops)
        start, end = end_points(batch.clean, random.normal(batch.clean.shape), stage, self.scheduler)
        sigma = stage_sigmas(random.uniform((len(start),)), start, self.scheduler)
        path = self.paths[stage]
        timestep = path.timestep_min + sigma * (path.timestep_max - path.timestep_min)
        noisy = per_sample(sigma) * start + (1 - per_sample(sigma)) * end
        texts = self.clips.embeddings[batch.captions]
        predicted = velocity(self.model, noisy, timestep, texts, batch, self.checkpointed)
        loss = (predicted - (start - end)).square().mean()
        return loss, {f"stage{stage}": loss.item()}

    def sample(self, averaged: dict[str, Tensor], path: Path) -> None:
        assert isinstance(self.clips, WorldClips)
        sampler = PyramidSampler(steps=(8, 6, 4), solver="euler")
        sample_sheet(self.model, averaged, self.clips.vae, self.clips.shown, sampler, self.clips.size, path)
