"""Distilled text-to-video against diffusers' HeliosPyramidPipeline: same weights, embeddings and generator."""

import inspect

import pytest
import torch
from helios_benchmarks.oracle import ReferencePyramid

from helios_core.errors import HeliosError
from helios_core.pipeline import HeliosPipeline
from helios_core.take.film import Film
from helios_core.take.prompts import PromptSchedule
from helios_core.take.source import TransformerChunks

CHUNKS = 3


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder("distilled")


@pytest.fixture(scope="module")
def theirs(folder):
    pipeline = ReferencePyramid.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def undecoded(theirs, monkeypatch):
    """Diffusers' pipeline where only latents are compared: it decodes those too, which takes most of the time."""
    monkeypatch.setattr(theirs.vae, "decode", lambda latents, return_dict: (torch.zeros(len(latents), 3, 33, 8, 8),))
    return theirs


@pytest.fixture(scope="module")
def ours(folder):
    return HeliosPipeline.from_pretrained(folder)


def embeddings(pipeline):
    dim = pipeline.transformer.config.text_dim
    return torch.randn(1, 512, dim, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("steps", [[1, 1, 1], [2, 2, 2]])
@pytest.mark.parametrize("amplify", [False, True])
@pytest.mark.parametrize(("height", "width", "seed"), [(64, 128, 0), (128, 64, 1234)])
def test_distilled_text_to_video(undecoded, ours, steps, amplify, height, width, seed):
    call = {
        "prompt_embeds": embeddings(ours),
        "height": height,
        "width": width,
        "num_frames": 33 * CHUNKS,
        "pyramid_num_inference_steps_list": steps,
        "is_amplify_first_chunk": amplify,
        "guidance_scale": 1.0,
    }
    expected = undecoded(**call, generator=torch.Generator().manual_seed(seed), output_type="latent").frames
    result = ours(**call, generator=torch.Generator().manual_seed(seed), output_type="latent").latents
    assert result.shape == (1, 16, 9 * CHUNKS, height // 8, width // 8)
    assert (result - expected).abs().max() / expected.std() <= 1e-4


def test_frames_equal_reference_and_all_33_are_kept(theirs, ours):
    call = {
        "prompt": "a red boat on a quiet lake",
        "height": 64,
        "width": 64,
        "num_frames": 66,
        "pyramid_num_inference_steps_list": [1, 1, 1],
        "is_amplify_first_chunk": False,
        "guidance_scale": 1.0,
    }
    expected = theirs(**call, generator=torch.Generator().manual_seed(3), output_type="np").frames
    result = ours(**call, generator=torch.Generator().manual_seed(3), output_type="np").frames
    assert expected.shape[1] == 65, "diffusers trims to 4n+1 frames"
    assert result.shape == (1, 66, 64, 64, 3)
    assert abs(result[:, :65] - expected).max() <= 1e-3


def test_guidance_equals_reference(undecoded, ours):
    call = {
        "prompt": "a red boat",
        "negative_prompt": "blurry",
        "height": 64,
        "width": 64,
        "num_frames": 33,
        "pyramid_num_inference_steps_list": [2, 2, 2],
        "guidance_scale": 3.0,
        "output_type": "latent",
    }
    expected = undecoded(**call, is_amplify_first_chunk=True, generator=torch.Generator().manual_seed(3)).frames
    result = ours(**call, is_amplify_first_chunk=True, generator=torch.Generator().manual_seed(3)).latents
    assert (result - expected).abs().max() / expected.std() <= 1e-4


def test_batch_of_prompts_equals_reference(undecoded, ours):
    call = {
        "prompt": ["a red boat", "snow on a forest"],
        "height": 64,
        "width": 64,
        "num_frames": 66,
        "pyramid_num_inference_steps_list": [1, 1, 1],
        "is_amplify_first_chunk": True,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    expected = undecoded(**call, generator=torch.Generator().manual_seed(3)).frames
    result = ours(**call, generator=torch.Generator().manual_seed(3)).latents
    assert (result - expected).abs().max() / expected.std() <= 1e-4


def test_stream_equals_call(ours):
    call = {"prompt": "a boat", "height": 64, "width": 64, "num_frames": 66}
    whole = ours(**call, generator=torch.Generator().manual_seed(0), output_type="uint8")
    chunks = list(ours.stream(**call, generator=torch.Generator().manual_seed(0)))
    assert [chunk.index for chunk in chunks] == [0, 1]
    assert torch.equal(torch.cat([chunk.latents for chunk in chunks], dim=2), whole.latents)
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks], dim=1), whole.frames)


def test_seed_changes_equal_a_film_begun_there(ours):
    """Chunk 1 with another seed, by hand: the history after chunk 0 and a generator of that seed."""
    call = {"prompt": "a boat", "height": 64, "width": 64, "output_type": "latent"}
    first, second, third = ours.stream(**call, num_frames=99, seed_changes="1: 7")
    plain = ours(**call, num_frames=99).latents.split(9, dim=2)
    assert torch.equal(first.latents, plain[0]) and not torch.equal(second.latents, plain[1])
    source = TransformerChunks(
        ours.transformer,
        ours.sampler(),
        PromptSchedule(((0, ours.encode_prompt("a boat")),)),
        None,
        1.0,
        torch.Generator().manual_seed(1234),
        ours.device,
        ours.dtype,
        str,
    )
    by_hand = list(Film(source, first.history, 2, seed=7).chunks())
    assert torch.equal(by_hand[0].latents, second.latents) and torch.equal(by_hand[1].latents, third.latents)


def test_the_callers_generator_moves_on(ours):
    """As diffusers' does: another clip from the same generator is another clip, and both in a row are one stream."""
    generator = torch.Generator().manual_seed(0)
    call = {"prompt": "a boat", "height": 64, "width": 64, "num_frames": 33, "output_type": "latent"}
    clips = [ours(**call, generator=generator).latents for _ in range(2)]
    assert not torch.equal(*clips)
    assert torch.equal(clips[0], ours(**call, generator=torch.Generator().manual_seed(0)).latents)


def test_signatures_show_every_keyword(ours):
    shown = [inspect.signature(method).parameters for method in (ours.stream, ours.__call__)]
    assert list(shown[0]) == [name for name in shown[1] if name != "self"]
    assert {"prompt", "height", "generator", "seed_changes"} <= shown[0].keys()
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in shown[0].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "width=100 is not a positive multiple of 64; use 64 or 128"),
        ({"height": 96}, "height=96 is not a positive multiple of 64; use 64 or 128"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"pyramid_num_inference_steps_list": [2, 2]}, r"steps=\[2, 2\] does not fit"),
        ({"pyramid_num_inference_steps_list": [2, 0, 2]}, r"steps=\[2, 0, 2\] does not fit"),
        ({"prompt": None}, "give exactly one"),
        ({"output_type": "gif"}, "output_type='gif' is unknown"),
    ],
)
def test_bad_input_is_refused_before_sampling(ours, changes, message, monkeypatch):
    monkeypatch.setattr(ours.transformer, "forward", lambda *_: pytest.fail("sampling started"))
    with pytest.raises(HeliosError, match=message):
        ours(**({"prompt": "a boat", "width": 64, "height": 64, "num_frames": 33} | changes))
