"""Image and video histories against diffusers' own preparation, same VAE and generator."""

import pytest
import torch
from diffusers import HeliosPyramidPipeline

from helios_core.checkpoint.vae import load_vae
from helios_core.errors import HeliosError
from helios_core.take.reference import NoiseRange, image_history, video_history

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def vae(tiny_folder):
    return load_vae(tiny_folder("distilled") / "vae")


@pytest.fixture(scope="module")
def reference(tiny_folder):
    """Diffusers' pipeline, stopped where the history is complete: its first network call sees it."""
    pipeline = HeliosPyramidPipeline.from_pretrained(tiny_folder("distilled"))
    pipeline.set_progress_bar_config(disable=True)

    class SeenError(Exception):
        pass

    seen = {}

    def stop(**inputs):
        seen.update(inputs)
        raise SeenError

    pipeline.transformer.forward = stop

    def run(**media):
        embeds = torch.zeros(1, 512, pipeline.transformer.config.text_dim)
        generator = torch.Generator().manual_seed(11)
        with pytest.raises(SeenError):
            pipeline(prompt_embeds=embeds, height=HEIGHT // 16 * 16, width=WIDTH, num_frames=33, guidance_scale=1.0,
                     generator=generator, pyramid_num_inference_steps_list=[1], **media)  # fmt: skip
        return seen, generator

    return run


def pixels(frames):
    clip = torch.rand(1, frames, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    return clip, clip.permute(0, 2, 1, 3, 4) * 2 - 1


def assert_same(history, seen):
    short, mid, long = history.context()
    for ours, name in ((short, "short"), (mid, "mid"), (long, "long")):
        theirs = seen[f"latents_history_{name}"]
        assert theirs.abs().max() > 0 or name != "short"
        assert (ours - theirs).abs().max() <= 1e-5, name


def test_image_history_equals_reference(vae, reference):
    clip, ours = pixels(1)
    seen, _ = reference(image=clip[:, 0])
    assert_same(image_history(ours[:, :, 0], vae.encode, vae.normalise, torch.Generator().manual_seed(11)), seen)


@pytest.mark.parametrize("frames", [33, 70])
def test_video_history_equals_reference(vae, reference, frames):
    clip, ours = pixels(frames)
    seen, _ = reference(video=clip)
    assert_same(video_history(ours, vae.encode, vae.normalise, torch.Generator().manual_seed(11)), seen)


def test_noise_range_reaches_the_latents(vae):
    _, ours = pixels(1)
    image = ours[:, :, 0]
    histories = [
        image_history(image, vae.encode, vae.normalise, torch.Generator().manual_seed(0), noise=NoiseRange(s, s))
        for s in (0.0, 0.5, 1.0)
    ]
    distances = [(h.anchor - histories[0].anchor).abs().mean() for h in histories]
    assert distances[0] == 0 < distances[1] < distances[2]


def test_bad_input_is_named(vae):
    _, ours = pixels(20)
    with pytest.raises(HeliosError, match="video has 20 frames; give a clip of at least 33"):
        video_history(ours, vae.encode, vae.normalise, torch.Generator())
    with pytest.raises(HeliosError, match=r"noise sigma range 0.5 to 0.2"):
        NoiseRange(0.5, 0.2)
