"""The stages' noisy latents against the paper's definitions, and what a step does to a tiny model."""

import math

import pytest
import torch
from helios_training import data, flow, model, stage1, stage2, stage3
from helios_training.trainer import StepRandom
from torch.nn import functional as F

from helios_core.samplers import SchedulerConfig
from helios_core.samplers.stages import start_point

TINY = {"num_attention_heads": 2, "ffn_dim": 96, "num_layers": 2}


class OneClip:
    """Two chunks of noise with a caption: all that a task asks of Clips."""

    def __init__(self, same: bool = True):
        generator = torch.Generator().manual_seed(3)
        self.latents = torch.randn(1, data.CHUNKS, 16, 9, 8, 8, generator=generator)
        if same:
            self.latents[:] = self.latents[:, :1, :, :1]
        self.embeddings = torch.zeros(2, 12, model.TEXT_DIM)
        self.embeddings[0, :1], self.embeddings[1, :9] = 0.3, torch.randn(9, model.TEXT_DIM, generator=generator)

    def batch(self, random, size, drops):
        return data.Batch(
            self.latents[:, 1].expand(size, -1, -1, -1, -1),
            self.latents[:, 0, :, :1].expand(size, -1, -1, -1, -1),
            F.pad(self.latents[:, 0], (0, 0, 0, 0, 10, 0)).expand(size, -1, -1, -1, -1),
            [1] * size,
        )


def test_stage_tables_are_the_papers():
    # Thirds of sigma; a start that has lost signal to the block noise of the upsample (gamma 1/3: a factor 2).
    for path, start, end in zip(flow.paths(), (1.0, 2 / 3, 1 / 3), (2 / 3, 1 / 3, 0.0), strict=True):
        signal = 1 - start
        corrected = 1 - signal / (2 * (1 - signal) + signal) if start < 1 else 1.0
        assert path.start == pytest.approx(corrected, abs=1e-3)
        assert path.end == pytest.approx(end, abs=1e-3)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_start_and_end_points_by_definition(stage):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 16, 9, 8, 16, generator=generator) for _ in range(2))

    def means(x, times):  # bilinear halving of an even size is the mean of 2x2
        for _ in range(times):
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x

    path, times = flow.paths()[stage], 2 - stage
    eps, x = means(noise, times) * 2**times, means(clean, times)
    expected_end = path.end * eps + (1 - path.end) * x
    expected_start = eps
    if stage > 0:
        coarse = means(clean, times + 1)
        up = coarse[..., :, None, :, None].expand(*coarse.shape[:-1], 2, coarse.shape[-1], 2).reshape(x.shape)
        expected_start = path.start * eps + (1 - path.start) * up
    start, end = flow.end_points(clean, noise, stage)
    torch.testing.assert_close(start, expected_start, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(end, expected_end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_samplers_start_points_hold_as_much_signal_and_noise_as_trainings(stage):
    config = SchedulerConfig()
    clean = torch.ones(64, 16, 9, 8, 8)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    _, before = flow.end_points(clean, noise, stage - 1)
    table = flow.stage_tables(config)[stage]
    sampled = start_point(before, table, config.gamma, torch.Generator().manual_seed(2), torch.float32)
    trained, _ = flow.end_points(clean, noise, stage)
    assert sampled.mean().item() == pytest.approx(trained.mean().item(), abs=5e-3)
    assert sampled.std().item() == pytest.approx(trained.std().item(), rel=2e-2)


def test_short_text_is_exactly_the_padded_one():
    transformer = model.new_transformer(**TINY)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    clip = OneClip()
    batch = clip.batch(StepRandom(0, 0), 2, data.Drops())
    embeddings = clip.embeddings[[0, 1]]
    padded = torch.zeros(2, 512, model.TEXT_DIM)
    padded[:, :12] = embeddings
    short = torch.cat([batch.anchor, batch.history[:, :, 18:]], dim=2)
    latents, timestep = torch.randn(2, 16, 9, 8, 8), torch.tensor([900.0, 30.0])
    expected = transformer(latents, timestep, padded, short, batch.history[:, :, 16:18], batch.history[:, :, :16])
    for checkpointed in (False, True):
        found = model.velocity(transformer, latents, timestep, embeddings, batch, checkpointed)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_memory_patch_starts_as_the_mean_of_the_tokens_it_replaces():
    transformer = model.new_transformer(**TINY)
    latents = torch.randn(1, 16, 4, 8, 8)
    for patch, factor in ((transformer.patch_mid, 2), (transformer.patch_long, 4)):
        torch.testing.assert_close(
            patch(latents), F.avg_pool3d(transformer.patch_embedding(latents), factor), atol=1e-5, rtol=1e-4
        )


def test_corruption_leaves_unknown_frames_and_some_samples_alone():
    known = torch.ones(16, 6, 4, 4)
    known[:, :2] = 0
    found = [data.corrupted(known, StepRandom(0, step), data.Drops()) for step in range(200)]
    assert all((x[:, :2] == 0).all() for x in found)
    untouched = sum(torch.equal(x, known) for x in found) / len(found)
    assert 0.04 < untouched < 0.18
    assert max((x - known).abs().max().item() for x in found) < 0.34 * 6
    moved = next(x for x in found if not torch.equal(x, known))
    spreads = moved[:, 2:].std(dim=(0, 2, 3))
    assert spreads.max() - spreads.min() > 0.02  # each frame has its own strength


def _losses(task, module, steps, rate):
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        loss, _ = task.loss(step, StepRandom(0, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stage", [stage1.Stage1, stage2.Stage2])
def test_one_clip_is_learned(stage):
    transformer = model.new_transformer(**TINY)
    task = stage(transformer, OneClip(), batch=2)

    def measured():
        with torch.no_grad():
            return sum(task.loss(step, StepRandom(9, step))[0].item() for step in range(8))

    before = measured()
    _losses(task, transformer, 60, 3e-3)
    assert measured() < 0.8 * before


def test_ode_initialisation_pulls_the_student_to_the_teachers_ends():
    teacher = model.new_transformer(seed=1, **TINY)
    student = model.new_transformer(seed=2, **TINY)
    torch.nn.init.normal_(teacher.output.proj.weight, std=0.05)  # a new network predicts nothing
    task = stage3.OdeTask(student, teacher, OneClip(), batch=2, teacher_steps=2)
    losses = _losses(task, student, 40, 3e-3)
    assert math.isfinite(sum(losses))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_matching_loss_has_the_matching_gradient():
    generated, wanted, unwanted, fake = (torch.randn(2, 16, 9, 2, 2) for _ in range(4))
    generated.requires_grad_(True)
    real = wanted + 3 * (wanted - unwanted)
    by_hand = torch.stack([(f - r) / (x - r).abs().mean() for x, r, f in zip(generated, real, fake, strict=True)])
    gradient = stage3.matching_gradient(generated.detach(), wanted, unwanted, fake, 3.0)
    torch.testing.assert_close(gradient.float(), by_hand.detach(), atol=1e-5, rtol=1e-4)
    stage3.matching_loss(generated, gradient).backward()
    torch.testing.assert_close(generated.grad, by_hand.detach() / generated.numel(), atol=1e-7, rtol=1e-4)


def _distill(cached):
    real, student = (model.new_transformer(seed=seed, **TINY) for seed in (1, 2))
    with torch.no_grad():
        for network in (real, student):
            network.output.proj.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return stage3.DistillTask(student, real, OneClip(), batch=2, depths=(0,), cached=cached)


def test_cached_gradients_are_the_gradients():
    found = []
    for cached in (True, False):
        task = _distill(cached)
        loss, _ = task.loss(0, StepRandom(0, 0))
        loss.backward()
        found.append([p.grad for p in task.student.parameters()])
        assert all(p.grad is None for p in [*task.fake.parameters(), *task.heads.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_only_every_fifth_step_is_the_students():
    task = _distill(cached=True)
    for step in (0, 1, 5):
        task.module.zero_grad(set_to_none=True)
        loss, _ = task.loss(step, StepRandom(0, step))
        loss.backward()
        students = any(p.grad is not None for p in task.student.parameters())
        critics = any(p.grad is not None for p in [*task.fake.parameters(), *task.heads.parameters()])
        assert (students, critics) == (step % 5 == 0, step % 5 != 0)


@pytest.mark.slow
def test_distribution_matching_pulls_the_student_to_what_the_real_score_knows():
    """Base has learned one clip, the student nothing; no step of the student's sees that clip."""
    real, student = (model.new_transformer(seed=seed, **TINY) for seed in (1, 2))
    _losses(stage1.Stage1(real, OneClip(), batch=2), real, 150, 3e-3)
    settings = stage3.DistillSettings(guidance=0.0, adversarial=0.0)  # nothing was learned without a caption
    task = stage3.DistillTask(student, real, OneClip(), batch=2, depths=(0,), settings=settings)

    def off():
        random = StepRandom(9, 0)
        batch = task.clips.batch(random, 6, stage3.DISTILL_DROPS)
        with torch.no_grad():
            generated = task.generate(batch, task.clips.embeddings[batch.captions], random)
        return (generated - batch.clean).square().mean().item()

    before = off()
    _losses(task, task.module, 400, 2e-3)
    assert off() < 0.85 * before
