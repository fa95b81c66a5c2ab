"""The end frame on networks whose answer is known; a chunk that it does not guide is as it was."""

import dataclasses

import pytest
import torch

from helios_core import HeliosPipeline
from helios_core.errors import HeliosError
from helios_core.samplers import BaseSampler, DMDSampler, EndFrame, PyramidSampler, SchedulerConfig, in_force
from helios_core.samplers.end_frame import clean
from helios_core.samplers.schedule import dmd_schedule, dynamic_shift, pyramid_schedule, stage_tables
from helios_core.take.film import check_film
from helios_core.take.fingerprint import fingerprint
from helios_core.take.history import History
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take

SHAPE = (1, 16, 9, 16, 16)


def drawn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Knows:
    """A network that is sure of one clip, whatever noise it is shown: its velocity leads there exactly."""

    def __init__(self, clip, sampler):
        self.clip, self.sampler, self.calls = clip, sampler, 0

    def __call__(self, latents, timestep):
        self.calls += 1
        clip = torch.nn.functional.interpolate(self.clip, latents.shape[2:], mode="area")
        if isinstance(self.sampler, BaseSampler):
            return (latents - clip) / (timestep.view(-1, 1, 1, 1, 1) / 1000)
        config, index = self.sampler.scheduler, {4: 0, 8: 1, 16: 2}[latents.shape[-1]]
        stage, steps = stage_tables(config)[index], self.sampler.steps[index]
        mu = dynamic_shift(9 * max(4, latents.shape[-1] // 2) ** 2 // 4)
        schedule = (
            dmd_schedule(config, stage, steps, mu, False)
            if isinstance(self.sampler, DMDSampler)
            else pyramid_schedule(config, stage, steps, mu)
        )
        sigma = min(zip(schedule.timesteps, schedule.sigmas, strict=False), key=lambda x: abs(x[0] - timestep))[1]
        start, end = stage.noise_start, stage.noise_end
        share = sigma * start + (1 - sigma) * end
        noise = (latents - (1 - share) * clip) / share
        return (start - end) * (noise - clip)


SAMPLERS = {
    "base": BaseSampler((6,)),
    "base euler": BaseSampler((6,), "euler"),
    "mid": PyramidSampler((4, 4, 4)),
    "mid euler": PyramidSampler((4, 4, 4), "euler"),
    "distilled": DMDSampler((2, 2, 2), amplify_first_chunk=False),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_frame_is_the_images_and_those_before_are_on_the_way(name):
    """The film becomes clip + share (image - clip), with the share of the ramp written down again here."""
    sampler, clip, image = SAMPLERS[name], drawn(1), drawn(2)
    for strength, guided, chunk in ((1.0, 1, 5), (0.6, 1, 5), (1.0, 3, 4)):
        end = EndFrame(sampler, image, 5, guided, strength)
        made = end.sample(Knows(clip, sampler), drawn(3), torch.Generator().manual_seed(4), chunk)
        place = (guided - 1 - (5 - chunk)) * 9
        share = strength * ((torch.arange(9.0) + 1 + place) / (9 * guided)).pow(3).view(1, 1, 9, 1, 1)
        assert torch.allclose(made, clip + share * (image - clip), atol=2e-3)
    made = EndFrame(sampler, image, 5).sample(Knows(clip, sampler), drawn(3), torch.Generator().manual_seed(4), 5)
    assert torch.allclose(made[:, :, -1], image[:, :, -1], atol=2e-3)


def test_two_end_frames_are_two_places_on_the_way():
    sampler, clip = SAMPLERS["base"], drawn(1)
    both = EndFrame(EndFrame(sampler, drawn(2), 1), drawn(5), 3)
    for chunk, image in ((1, drawn(2)), (3, drawn(5))):
        made = both.sample(Knows(clip, sampler), drawn(3), torch.Generator(), chunk)
        assert torch.allclose(made[:, :, -1], image[:, :, -1], atol=2e-3)


@pytest.mark.parametrize("config", [SchedulerConfig(), SchedulerConfig(stages=1, stage_range=(0.0, 1.0))])
def test_clean_latents_of_a_stages_path(config):
    """x and noise, put on the path by its definition, are found again anywhere on it."""
    x, noise = drawn(6).double(), drawn(7).double()
    for stage in stage_tables(config):
        begin = stage.noise_start * noise + (1 - stage.noise_start) * x
        end = stage.noise_end * noise + (1 - stage.noise_end) * x
        for sigma in (0.99, 0.4, 0.01):
            assert torch.allclose(clean(sigma * begin + (1 - sigma) * end, begin - end, sigma, stage), x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_chunks_that_are_not_guided_are_bit_equal(name):
    sampler, image = SAMPLERS[name], drawn(2)
    for end, chunk in ((EndFrame(sampler, image, 2), 1), (EndFrame(sampler, image, 2), 3),
                       (EndFrame(sampler, image, 2, strength=0.0), 2)):  # fmt: skip
        plain, other = (
            x.sample(Knows(drawn(1), sampler), drawn(3), torch.Generator().manual_seed(4), chunk, True)
            for x in (sampler, end)
        )
        assert torch.equal(plain, other)
        assert in_force(end, chunk) is sampler
    inner = EndFrame(sampler, image, 2)
    assert fingerprint(in_force(EndFrame(inner, drawn(5), 4), 2)) == fingerprint(inner)


def test_a_films_last_chunk_alone_is_made_again(tiny_folder, tmp_path):
    """In the store of the film without an end frame; its settings and its image tell guided chunks apart."""
    pipe = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    store = ChunkStore(tmp_path)
    request = {"prompt": "a boat", "width": 64, "height": 64, "pyramid_num_inference_steps_list": [1, 1, 1],
               "num_frames": 66, "output_type": "latent", "is_amplify_first_chunk": False}  # fmt: skip
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    films = [
        list(pipe.stream(**request, **given, take=Take(store, "film", {})))
        for given in ({}, {"end_image": image}, {"end_image": image, "end_strength": 0.5},
                      {"end_image": image.flip(-1)}, {"end_image": image}, {"end_image": image, "end_strength": 0.0})
    ]  # fmt: skip
    plain, ended = films[:2]
    assert all(film[0].reused and torch.equal(film[0].latents, plain[0].latents) for film in films[1:])
    assert [film[1].reused for film in films] == [False, False, False, False, True, True]
    assert torch.equal(films[4][1].latents, ended[1].latents) and torch.equal(films[5][1].latents, plain[1].latents)
    with torch.no_grad():
        still = pipe.vae.normalise(pipe.vae.encode((2 * image - 1).unsqueeze(2).repeat(1, 1, 33, 1, 1))[0])
    away = [(film[1].latents[:, :, -1] - still[:, :, -1]).square().mean().item() for film in films[:3]]
    assert away[1] < 1e-4 * away[0] and away[1] < away[2] < away[0]


def test_settings_and_sizes_that_cannot_be_are_refused(tiny_folder):
    sampler, image = SAMPLERS["base"], drawn(2)
    for bad, message in (({"strength": 1.1}, "strength=1.1 must be from 0"), ({"strength": float("nan")}, "strength"),
                         ({"guided_chunks": 0}, "guided_chunks=0 must be from 1"),
                         ({"image": image[:, :, :1]}, "the end frame has shape")):  # fmt: skip
        with pytest.raises(HeliosError, match=message):
            dataclasses.replace(EndFrame(sampler, image, 0), **bad)
    with pytest.raises(HeliosError, match="the end frame is 128x128 and the video 64x128; connect the same history"):
        check_film(EndFrame(sampler, image, 0), History.empty(64, 128), 1)
    pipe = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    with pytest.raises(HeliosError, match=r"end_image has shape \[3, 8, 8\]"):
        pipe.stream("a boat", width=64, height=64, end_image=torch.zeros(3, 8, 8))
