"""The training forward of the VAE is the library's, and moving its latents' statistics changes nothing else."""

import pytest
import torch
from helios_training import parts, vae
from helios_training.trainer import StepRandom


@pytest.fixture(scope="module")
def video():
    return vae.crops(StepRandom(0, 0), 1, 17)


def _shaken(lean):
    model = vae.new_vae(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    if lean:
        vae.make_lean(model)
    return model


@pytest.mark.parametrize("lean", [False, True])
def test_the_forward_with_gradients_is_the_librarys(lean, video):
    model = _shaken(lean)
    mean, log_variance = vae.encode(model, video, lean)
    expected_mean, expected_std = model.encode(video)
    torch.testing.assert_close(mean, expected_mean, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.exp(0.5 * log_variance), expected_std, atol=2e-5, rtol=1e-4)
    decoded = vae.decode(model, expected_mean, lean).clamp(-1, 1)
    torch.testing.assert_close(decoded, model.decode(expected_mean), atol=2e-5, rtol=1e-4)


def test_latents_get_the_released_statistics_and_decode_to_the_same_pixels(video):
    model = _shaken(lean=True)
    mean, std = parts.latent_statistics(model, clips=6)
    moved = parts.with_statistics(model, mean, std)
    found_mean, found_std = parts.latent_statistics(moved, clips=6)
    torch.testing.assert_close(found_mean, torch.tensor(model.config.latents_mean), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found_std, torch.tensor(model.config.latents_std), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        moved.decode(moved.encode(video)[0]), model.decode(model.encode(video)[0]), atol=1e-4, rtol=1e-4
    )
    # The posterior's spread moves with its mean.
    before, after = model.encode(video)[1], moved.encode(video)[1]
    scale = (torch.tensor(model.config.latents_std) / std).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(after, before * scale, atol=1e-5, rtol=1e-3)
