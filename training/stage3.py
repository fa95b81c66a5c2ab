"""Stage 3: a student that needs two steps per pyramid stage (the paper's adversarial hierarchical distillation).

Part 1, :class:`OdeTask`: the student's few steps are regressed on where Mid's own trajectories lead.
Part 2, :class:`DistillTask`: distribution matching with a real score (frozen Base, with guidance) and a fake score
(trained on what the student makes), and an adversarial loss of small heads on the fake score's features. Histories
are real clips, never the student's own films. The result is Helios-Distilled.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helios_core.networks.transformer import HeliosTransformer
from helios_core.samplers import DMDSampler, SchedulerConfig
from helios_core.samplers.dmd_sampler import predicted_x0, renoised
from helios_core.samplers.noise import draw_block_noise, upsampled
from helios_core.samplers.schedule import (
    Stage,
    StepSchedule,
    dmd_schedule,
    dynamic_shift,
    pyramid_schedule,
    stage_tables,
)
from helios_core.samplers.stages import denoise_stages, token_count

from .data import Batch, Drops, WorldClips
from .flow import end_points, per_sample, stage_sigmas
from .model import velocity
from .samples import sample_sheet
from .stage1 import TIMESTEPS
from .stage2 import drawn_stage
from .trainer import StepRandom, Task

MID = SchedulerConfig(time_shift_type="exponential")
DISTILLED = SchedulerConfig()
STEPS = 2
DISTILL_DROPS = Drops(text_to_video=0.4, caption=0.0)


def student_schedule(stage: int, latents: Tensor) -> StepSchedule:
    """The timesteps and sigmas that the distilled sampler has at this stage; ``latents`` are the stage's own."""
    tokens = token_count(latents) // (1 if stage == 0 else 4)
    return dmd_schedule(DISTILLED, stage_tables(DISTILLED)[stage], STEPS, dynamic_shift(tokens), amplified=False)


def guided(
    model: HeliosTransformer,
    latents: Tensor,
    timestep: Tensor,
    embeddings: Tensor,
    empty: Tensor,
    batch: Batch,
    scale: float,
) -> Tensor:
    """Velocity with classifier-free guidance: u + scale (c - u)."""
    wanted = velocity(model, latents, timestep, embeddings, batch)
    if scale == 1:
        return wanted
    unwanted = velocity(model, latents, timestep, empty.expand_as(embeddings), batch)
    return unwanted + scale * (wanted - unwanted)


class OdeTask(Task):
    """ODE initialisation: from any of its own steps the student must reach the end of Mid's trajectory at once.

    Mid walks one stage from the start point of a real chunk in ``teacher_steps`` Euler steps with guidance; the
    student's x0 = x - sigma v at a random one of its timesteps, on the straight line between both ends, is compared
    with the trajectory's end.
    """

    def __init__(
        self, student: HeliosTransformer, teacher: HeliosTransformer, clips: WorldClips, batch: int = 6,
        teacher_steps: int = 8, guidance: float = 3.0, shares: Sequence[float] = (0.5, 0.3, 0.2),
    ):  # fmt: skip
        super().__init__(student)
        self.student, self.teacher, self.clips, self.batch = student, teacher.requires_grad_(False), clips, batch
        self.teacher_steps, self.guidance, self.shares = teacher_steps, guidance, shares

    def loss(self, step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        stage = drawn_stage(step, self.shares)
        batch = self.clips.batch(random, self.batch, DISTILL_DROPS)
        embeddings = self.clips.embeddings[batch.captions]
        start, _ = end_points(batch.clean, random.normal(batch.clean.shape), stage)
        if stage > 0:  # as the sampler makes it: the last stage's end, upsampled, plus block noise
            table = stage_tables(MID)[stage]
            _, before = end_points(batch.clean, random.normal(batch.clean.shape), stage - 1)
            noise = draw_block_noise(tuple(start.shape), MID.gamma, random.generator)
            start = table.renoise_signal * upsampled(before) + table.renoise_noise * noise
        end = self._teacher_end(start, stage, embeddings, batch)
        schedule = student_schedule(stage, start)
        index = random.integer(len(schedule.timesteps))
        sigma = schedule.sigmas[index]
        latents = start if index == 0 else renoised(end, start, sigma)
        timestep = torch.full((len(start),), float(int(schedule.timesteps[index])))
        predicted = latents - sigma * velocity(self.student, latents, timestep, embeddings, batch)
        loss = (predicted - end).square().mean()
        return loss, {f"stage{stage}": loss.item()}

    @torch.no_grad()
    def _teacher_end(self, start: Tensor, stage: int, embeddings: Tensor, batch: Batch) -> Tensor:
        tokens = token_count(start) // (1 if stage == 0 else 4)
        schedule = pyramid_schedule(MID, stage_tables(MID)[stage], self.teacher_steps, dynamic_shift(tokens))
        latents = start
        scale = self.guidance if stage == 0 else 1.0 + (self.guidance - 1.0) * 0.5
        empty = self.clips.embeddings[:1]
        for index, timestep in enumerate(schedule.timesteps):
            times = torch.full((len(start),), float(int(timestep)))
            v = guided(self.teacher, latents, times, embeddings, empty, batch, scale)
            latents = latents + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * v
        return latents

    def sample(self, averaged: dict[str, Tensor], path: Path) -> None:
        sampler = DMDSampler(steps=(STEPS,) * 3)
        sample_sheet(
            self.student, averaged, self.clips.vae, self.clips.shown, sampler, self.clips.size, path, guidance=1.0
        )


# -------------------------------------------------------------------------------------------- distribution matching


def matching_gradient(generated: Tensor, real_wanted: Tensor, real_unwanted: Tensor, fake: Tensor, scale: float = 3.0):
    """The direction in which the student's film is less like its own and more like Base's, per sample.

    g = (x0_fake - x0_real) / mean|x0 - x0_real| with x0_real = c + scale (c - u); all arguments [B,16,9,h,w], and
    the result in float64.
    """
    generated, wanted, unwanted, fake = (x.double() for x in (generated, real_wanted, real_unwanted, fake))
    real = wanted + scale * (wanted - unwanted)
    size = (generated - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return (fake - real) / size.clamp_min(1e-6)


def matching_loss(generated: Tensor, gradient: Tensor) -> Tensor:
    """0.5 MSE(x0, stopgrad(x0 - g)): its gradient with respect to x0 is g over the number of elements."""
    wide = generated.double()
    return 0.5 * F.mse_loss(wide, (wide - gradient).detach())


class Heads(nn.Module):
    """Small critics on the fake score's tokens at several depths: real chunks high, generated ones low."""

    def __init__(self, dim: int, depths: Sequence[int]):
        super().__init__()
        self.depths = tuple(depths)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1)) for _ in depths
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Tokens [B,L,C] of every depth -> scores [B]."""
        scores = [head(tokens).mean(dim=(1, 2)) for head, tokens in zip(self.heads, features, strict=True)]
        return torch.stack(scores).mean(0)


class Features:
    """Collects the noisy tokens after some blocks while a transformer runs."""

    def __init__(self, model: HeliosTransformer, depths: Sequence[int], tokens: int):
        self.found: list[Tensor] = []
        self._hooks = [
            model.blocks[depth].register_forward_hook(lambda _m, _i, out: self.found.append(out[:, -tokens:]))
            for depth in depths
        ]

    def __enter__(self) -> list[Tensor]:
        return self.found

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


class CachedGradient(torch.autograd.Function):
    """A loss whose gradient with respect to its input is known already: nothing of its graph is kept.

    The critic's activations are freed before the student's backward pass starts.
    """

    @staticmethod
    def forward(ctx, latents: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


@dataclass(frozen=True)
class DistillSettings:
    """``student_every`` steps the student moves once; ``early`` steps draw t ~ Beta(4, 1.5), later ones uniformly."""

    guidance: float = 3.0
    student_every: int = 5
    early: int = 500
    adversarial: float = 0.05
    lowest: float = 20.0
    highest: float = 980.0


class DistillTask(Task):
    """Distribution matching and adversarial heads on whole chunks of the student's, after real histories.

    The student makes a chunk as its sampler does. In every stage it leaves at a random step, whose x0 alone records
    gradients. ``real``, the real score, is Base, which knows all amounts of noise at full resolution; the fake score
    starts from it. One optimiser step is either the student's or that of the fake score and its heads (flow matching
    on the generated chunk, and real against generated). The module holds all three, so that one state resumes all.
    """

    def __init__(
        self, student: HeliosTransformer, real: HeliosTransformer, clips: WorldClips, batch: int = 4,
        depths: Sequence[int] = (1, 2, 4), settings: DistillSettings | None = None, cached: bool = True,
    ):  # fmt: skip
        fake = copy.deepcopy(real).requires_grad_(True)
        heads = Heads(student.config.dim, depths)
        super().__init__(nn.ModuleDict({"student": student, "fake": fake, "heads": heads}))
        self.student, self.fake, self.heads = student, fake, heads
        self.real, self.clips, self.batch = real.requires_grad_(False), clips, batch
        self.settings, self.cached = settings or DistillSettings(), cached

    def loss(self, step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        batch = self.clips.batch(random, self.batch, DISTILL_DROPS)
        embeddings = self.clips.embeddings[batch.captions]
        students = step % self.settings.student_every == 0
        self.student.requires_grad_(students)
        self.fake.requires_grad_(not students)
        self.heads.requires_grad_(not students)
        with torch.set_grad_enabled(students):
            generated = self.generate(batch, embeddings, random)
        noise, t = random.normal(generated.shape), self._times(step, generated, random)
        run = self._student_loss if students else self._critic_loss
        return run(generated, noise, t, embeddings, batch)

    def generate(self, batch: Batch, embeddings: Tensor, random: StepRandom) -> Tensor:
        """The student's chunks [B,16,9,h,w]."""

        def leave(_: int, stage: Stage, mu: float, start: Tensor) -> Tensor:
            schedule = dmd_schedule(DISTILLED, stage, STEPS, mu, amplified=False)
            last, latents = random.integer(STEPS), start
            for index in range(last):
                with torch.no_grad():
                    x0 = self._step(latents, schedule, index, embeddings, batch)
                latents = renoised(x0, start, schedule.sigmas[index + 1])
            return self._step(latents, schedule, last, embeddings, batch)

        noise = random.normal(batch.clean.shape)
        return denoise_stages(DISTILLED, noise, random.generator, noise.dtype, leave)

    def _step(self, latents: Tensor, schedule: StepSchedule, index: int, embeddings: Tensor, batch: Batch) -> Tensor:
        timestep = torch.full((len(latents),), float(int(schedule.timesteps[index])))
        v = velocity(self.student, latents, timestep, embeddings, batch)
        return predicted_x0(latents, v, schedule.sigmas[index], latents.dtype)

    def _times(self, step: int, latents: Tensor, random: StepRandom) -> Tensor:
        """How much noise the scores see [B], shifted as Base's steps are at this size."""
        uniform = random.uniform((self.batch,))
        if step < self.settings.early:  # Beta(4, 1.5) by its nearest Kumaraswamy distribution, in closed form
            uniform = (1 - (1 - uniform) ** (1 / 1.6)) ** (1 / 3.6)
        return stage_sigmas(uniform, latents).clamp(self.settings.lowest / TIMESTEPS, self.settings.highest / TIMESTEPS)

    def _student_loss(
        self, generated: Tensor, noise: Tensor, t: Tensor, embeddings: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        noisy = (1 - per_sample(t)) * generated + per_sample(t) * noise

        def x0(model: HeliosTransformer, text: Tensor) -> Tensor:
            return noisy - per_sample(t) * velocity(model, noisy, TIMESTEPS * t, text, batch)

        with torch.no_grad():
            wanted, unwanted = x0(self.real, embeddings), x0(self.real, self.clips.embeddings[:1].expand_as(embeddings))
            direction = matching_gradient(
                generated, wanted, unwanted, x0(self.fake, embeddings), self.settings.guidance
            )
        matched = matching_loss(generated, direction).float()
        fooled = self._fooling_loss(noisy, TIMESTEPS * t, embeddings, batch)
        return matched + self.settings.adversarial * fooled, {"matching": matched.item(), "fooling": fooled.item()}

    def _fooling_loss(self, noisy: Tensor, timestep: Tensor, embeddings: Tensor, batch: Batch) -> Tensor:
        if not self.cached:
            return F.softplus(-self._scores(noisy, timestep, embeddings, batch)[1]).mean()
        with torch.enable_grad():
            alone = noisy.detach().requires_grad_(True)
            value = F.softplus(-self._scores(alone, timestep, embeddings, batch)[1]).mean()
            (gradient,) = torch.autograd.grad(value, alone)
        return CachedGradient.apply(noisy, value.detach(), gradient)

    def _critic_loss(
        self, generated: Tensor, noise: Tensor, t: Tensor, embeddings: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        noisy, noisy_real = ((1 - per_sample(t)) * x + per_sample(t) * noise for x in (generated, batch.clean))
        predicted, low = self._scores(noisy, TIMESTEPS * t, embeddings, batch)
        _, high = self._scores(noisy_real, TIMESTEPS * t, embeddings, batch)
        flow = (predicted - (noise - generated)).square().mean()
        told = F.softplus(low).mean() + F.softplus(-high).mean()
        return flow + self.settings.adversarial * told, {"flow": flow.item(), "told": told.item()}

    def _scores(self, noisy: Tensor, timestep: Tensor, embeddings: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The fake score's velocity, and what the heads say of its features."""
        with Features(self.fake, self.heads.depths, token_count(noisy)) as found:
            predicted = velocity(self.fake, noisy, timestep, embeddings, batch)
        return predicted, self.heads(found)

    def sample(self, averaged: dict[str, Tensor], path: Path) -> None:
        mine = {name[8:]: tensor for name, tensor in averaged.items() if name.startswith("student.")}
        sampler = DMDSampler(steps=(STEPS,) * 3)
        sample_sheet(self.student, mine, self.clips.vae, self.clips.shown, sampler, self.clips.size, path, guidance=1.0)
