"""Held colours and another anchor, measured independently on films with known faults."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from helios_core.checkpoint.vae import load_vae
from helios_core.errors import HeliosError
from helios_core.take.anchor import newest_frame, with_anchor
from helios_core.take.history import History
from helios_core.video.colour import anchored, anchored_latents

ROOT = Path(__file__).parents[2]
CHUNKS, CHUNK = 44, 11
RAMP = np.array([0.12, -0.08, 0.05])


def film(change=lambda image, t: image, frames=CHUNKS * CHUNK, speed=1):
    """[F,24,32,3]: a texture that moves; ``change(image, t)`` at t, 0 to 1."""
    still = np.random.default_rng(2).uniform(0.35, 0.65, (24, 32, 3))
    moved = [change(np.roll(still, speed * i, axis=1), i / (frames - 1)) for i in range(frames)]
    return torch.from_numpy(np.stack(moved)).float().clamp(0, 1)


def drift(frames):
    """HeliosBench's, of the mean of every channel."""
    means = frames.numpy().astype(np.float64).mean(axis=(1, 2))
    ends = int(len(means) * 0.15)
    return np.abs(means[:ends].mean(0) - means[-ends:].mean(0))


@pytest.mark.parametrize("fault", [lambda image, t: image + RAMP * t, lambda image, t: image ** (1 + 0.2 * t)])
def test_a_colour_ramp_is_cut_by_nine_tenths(fault):
    frames = film(fault)
    held = anchored(frames, chunk_frames=CHUNK)
    assert (drift(frames) > 0.03).all()
    assert (drift(held) < 0.1 * drift(frames)).all()
    half = drift(anchored(frames, strength=0.5, chunk_frames=CHUNK))
    assert half == pytest.approx((drift(frames) + drift(held)) / 2, abs=0.005)


def test_nothing_flickers_at_a_border():
    """The means go from frame to frame across a border as they go within a chunk."""
    held = anchored(film(lambda image, t: image + RAMP * np.sin(9 * t)), chunk_frames=CHUNK)
    steps = np.abs(np.diff(held.numpy().astype(np.float64).mean(axis=(1, 2)), axis=0)).max(axis=1)
    borders = np.arange(CHUNK, CHUNKS * CHUNK, CHUNK) - 1
    inside = np.delete(steps, borders)
    assert steps[borders].max() <= inside.max() and steps.max() < 1 / 255


def test_a_still_film_stays_as_it_is():
    still = film(frames=70, speed=0)
    assert (anchored(still, chunk_frames=CHUNK) - still).abs().max() <= 1 / 255
    moving = film(frames=70)
    assert (anchored(moving, chunk_frames=CHUNK) - moving).abs().max() <= 1 / 255
    assert anchored(still, strength=0.0) is still


def test_a_reference_gives_its_mean_and_spread():
    """Against numpy, chunk by chunk; the reference has another size, and is darker and flatter."""
    reference = 0.3 + 0.5 * (torch.rand(2, 9, 5, 3, generator=torch.Generator().manual_seed(4)) - 0.5)
    held = anchored(film(frames=CHUNK), reference, chunk_frames=CHUNK).numpy().astype(np.float64)
    for channel in range(3):
        wanted = reference[..., channel].numpy().astype(np.float64)
        assert held[..., channel].mean() == pytest.approx(wanted.mean(), abs=1e-5)
        assert held[..., channel].std() == pytest.approx(wanted.std(), abs=1e-3)


def test_flat_and_short_films_get_an_answer():
    black, white = torch.zeros(3, 4, 4, 3), torch.ones(3, 4, 4, 3)
    faded = anchored(torch.cat([film(frames=CHUNK)[:, :4, :4], black, white]), chunk_frames=CHUNK)
    assert torch.isfinite(faded).all() and faded.min() >= 0 and faded.max() <= 1
    assert torch.equal(anchored(black[:1], white[:1]), white[:1])
    for bad, message in (
        ({"frames": torch.zeros(0, 4, 4, 3)}, "images has shape"),
        ({"frames": torch.zeros(4, 4, 3)}, "images has shape"),
        ({"reference": torch.zeros(1, 4, 4, 1)}, "reference has shape"),
        ({"strength": 1.1}, "strength=1.1 must be from 0"),
        ({"strength": float("nan")}, "strength=nan must be from 0"),
        ({"chunk_frames": 0}, "chunk_frames=0 must be at least 1"),
    ):
        with pytest.raises(HeliosError, match=message):
            anchored(**{"frames": black, **bad})


# -- latents ----------------------------------------------------------------------------------------------------


def latents(seed, chunks=CHUNKS, batch=1):
    """[B,16,9n,4,6] that stay as they are, each channel with a mean and spread of its own."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(batch, 16, 1, 1, 1, generator=generator) + 0.5
    mean = torch.randn(batch, 16, 1, 1, 1, generator=generator)
    return mean + spread * torch.randn(batch, 16, 9 * chunks, 4, 6, generator=generator)


def latent_drift(x):
    """Of the mean of every channel."""
    frames = x.double().mean(dim=(3, 4))
    ends = int(frames.shape[2] * 0.15)
    return (frames[:, :, :ends].mean(2) - frames[:, :, -ends:].mean(2)).abs()


def test_a_ramp_of_latents_is_cut_by_nine_tenths():
    """Each of 16 channels drifts by up to 2, and grows by a third; every video of the batch is held to itself."""
    still = latents(1, batch=2)
    way = torch.linspace(0, 1, still.shape[2]).view(1, 1, -1, 1, 1)
    amount = torch.linspace(-2, 2, 16).view(1, 16, 1, 1, 1)
    drifting = still * (1 + way / 3) + amount * way
    held = anchored_latents(drifting)
    # What chance leaves in the still ones is no ramp.
    assert (latent_drift(held) <= 0.1 * latent_drift(drifting) + latent_drift(still)).all()
    for part, first in ((held[:, :, -9:], drifting[:, :, :9]),):
        assert torch.allclose(part.std(dim=(2, 3, 4)), first.std(dim=(2, 3, 4)), rtol=0.05)
    means = held.double().mean(dim=(3, 4))
    steps, usual = ((x[:, :, 1:] - x[:, :, :-1]).abs() for x in (means, still.double().mean(dim=(3, 4))))
    borders = np.arange(9, 9 * CHUNKS, 9) - 1
    assert steps[:, :, borders].mean() < 1.1 * usual[:, :, borders].mean()


def test_latents_take_a_references_statistics_and_still_ones_stay():
    one = latents(2, chunks=1)
    assert torch.allclose(anchored_latents(one), one, atol=1e-5) and anchored_latents(one, strength=0.0) is one
    reference = latents(3, chunks=2)
    held = anchored_latents(one.repeat(2, 1, 1, 1, 1), reference).numpy().astype(np.float64)
    for channel in range(16):
        wanted = reference[:, channel].numpy().astype(np.float64)
        assert held[1, channel].mean() == pytest.approx(wanted.mean(), abs=1e-4)
        ratio = wanted.std() / one[:, channel].numpy().astype(np.float64).std()
        if 0.5 < ratio < 2:
            assert held[1, channel].std() == pytest.approx(wanted.std(), rel=1e-3)
    with pytest.raises(HeliosError, match=r"reference has shape \[3, 16, 9, 4, 6\]"):
        anchored_latents(one, latents(3, chunks=1, batch=3))
    with pytest.raises(HeliosError, match="strength=2 must be from 0"):
        anchored_latents(one, strength=2)


def test_a_ramp_of_latents_is_gone_from_the_decoded_frames():
    """Through the VAE that comes with the pack: a still picture, its latents with a ramp, decoded chunk by chunk."""
    vae = load_vae(ROOT / "models" / "helios-small" / "mid", torch.float32, "cpu")
    y, x = np.mgrid[:32, :32] / 32
    picture = torch.from_numpy(np.stack([0.3 + 0.3 * x, 0.3 + 0.3 * y, 0.5 - 0.2 * x])).float() * 2 - 1
    with torch.no_grad():
        still = vae.encode(picture[None, :, None].repeat(1, 1, 33, 1, 1))[0].repeat(1, 1, 3, 1, 1)
        way = torch.linspace(0, 1, 27).view(1, 1, -1, 1, 1)
        ramp = torch.linspace(-1.5, 1.5, 16).view(1, 16, 1, 1, 1)
        frames = [
            torch.cat([vae.decode(part) for part in film.split(9, dim=2)], dim=2)[0].permute(1, 2, 3, 0) / 2 + 0.5
            for film in (still + way * ramp, anchored_latents(still + way * ramp))
        ]
    plain, held = (drift(x).max() for x in frames)
    assert plain > 0.05 and held < 0.1 * plain


# -- another anchor -------------------------------------------------------------------------------------------


def begun(chunks, batch=1):
    history, generator = History.empty(64, 64, batch), torch.Generator().manual_seed(1)
    for _ in range(chunks):
        history = history.after(torch.randn(history.chunk_shape, generator=generator), generator, 1)
    return history


def test_the_new_anchor_is_the_newest_chunks_first_frame_and_stays():
    generator = torch.Generator().manual_seed(2)
    scene = begun(2)
    anchored_ = with_anchor(scene, newest_frame(scene))
    newest = scene.latents[:, :, 10:11]
    assert torch.equal(anchored_.context()[0][:, :, :1], newest)
    assert torch.equal(anchored_.latents, scene.latents) and not torch.equal(scene.anchor, newest)
    later = anchored_.after(torch.randn(scene.chunk_shape, generator=generator), generator, 1)
    assert torch.equal(later.anchor, newest)


def test_anchors_are_mixed_by_strength():
    scene, other = begun(1, batch=2), torch.ones(1, 16, 1, 8, 8)
    mixed = with_anchor(scene, other, 0.25).anchor
    assert torch.allclose(mixed, 0.75 * scene.anchor + 0.25, atol=1e-6)
    assert with_anchor(scene, other, 0.0) is scene


def test_an_image_anchor_before_the_first_chunk_stays():
    """Also where chunk 1 would anchor the video anew."""
    image, generator = torch.full((1, 16, 1, 8, 8), 0.5), torch.Generator().manual_seed(2)
    history = with_anchor(dataclasses.replace(begun(0), skip_first_chunk=True), image)
    for _ in range(3):
        history = history.after(torch.randn(history.chunk_shape, generator=generator), generator, 1)
        assert torch.equal(history.anchor, image)


def test_anchors_that_cannot_be_are_refused():
    image = torch.zeros(1, 16, 1, 8, 8)
    with pytest.raises(HeliosError, match="no finished chunk to take an anchor from"):
        newest_frame(begun(0))
    with pytest.raises(HeliosError, match=r"no anchor yet to mix with at strength=0.5; set strength to 1"):
        with_anchor(begun(0), image, 0.5)
    with pytest.raises(HeliosError, match=r"strength=1.5 must be from 0"):
        with_anchor(begun(1), image, 1.5)
    for wrong in (torch.zeros(1, 16, 1, 8, 10), torch.zeros(3, 16, 1, 8, 8), torch.zeros(1, 16, 2, 8, 8)):
        with pytest.raises(HeliosError, match="give one picture of that size"):
            with_anchor(begun(1), wrong)
