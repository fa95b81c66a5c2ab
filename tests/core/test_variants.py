"""Base, Mid and Distilled against diffusers' pipelines: text, image and video to video, same generator."""

import pytest
import torch
from diffusers import HeliosPipeline as ReferenceBase
from helios_benchmarks.oracle import ReferencePyramid

from helios_core.errors import HeliosError
from helios_core.pipeline import HeliosPipeline

CHUNKS = 3
# Diffusers' CFG-Zero* cannot run where the coarsest stage is one token wide.
SIZES = [(64, 128), (128, 128)]
CASES = [
    ("base", {"num_inference_steps": 5, "guidance_scale": 5.0}),
    ("base", {"num_inference_steps": 20, "guidance_scale": 1.0}),
    ("mid", {"pyramid_num_inference_steps_list": [3, 3, 3], "guidance_scale": 5.0}),
    ("distilled", {"pyramid_num_inference_steps_list": [1, 1, 1], "guidance_scale": 1.0}),
    (
        "distilled",
        {"pyramid_num_inference_steps_list": [2, 2, 2], "guidance_scale": 1.0, "is_amplify_first_chunk": True},
    ),
]


@pytest.fixture(scope="module")
def pipelines(tiny_folder):
    """(diffusers' pipeline without its decoder, ours) of a variant."""
    made = {}

    def pair(variant):
        if variant not in made:
            folder = tiny_folder(variant)
            theirs = (ReferenceBase if variant == "base" else ReferencePyramid).from_pretrained(folder)
            theirs.set_progress_bar_config(disable=True)
            # Only latents are compared, and decoding takes most of the time.
            theirs.vae.decode = lambda latents, return_dict: (torch.zeros(latents.shape[0], 3, 33, 8, 8),)
            made[variant] = theirs, HeliosPipeline.from_pretrained(folder)
        return made[variant]

    return pair


def media(task, height, width):
    generator = torch.Generator().manual_seed(3)
    if task == "i2v":
        return {"image": torch.rand(1, 3, height, width, generator=generator)}
    if task == "v2v":
        return {"video": torch.rand(1, 40, 3, height, width, generator=generator)}
    return {}


def difference(pipelines, variant, settings, task, size, seed, chunks=CHUNKS):
    """Greatest error of the generated chunks' latents, in units of their standard deviation."""
    theirs, ours = pipelines(variant)
    (height, width), dim = size, ours.transformer.config.text_dim
    draw = torch.Generator().manual_seed(7)
    embeds = {"prompt_embeds": torch.randn(1, 512, dim, generator=draw)}
    if settings["guidance_scale"] > 1:
        embeds["negative_prompt_embeds"] = torch.randn(1, 512, dim, generator=draw)
    call = {**settings, **embeds, **media(task, height, width), "height": height, "width": width,
            "num_frames": 33 * chunks, "output_type": "latent"}  # fmt: skip
    expected = theirs(**call, generator=torch.Generator().manual_seed(seed)).frames[:, :, -9 * chunks :]
    if variant == "distilled":
        call.setdefault("is_amplify_first_chunk", False)
    result = ours(**call, generator=torch.Generator().manual_seed(seed)).latents
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / expected.std())


@pytest.mark.parametrize(("variant", "settings"), CASES)
@pytest.mark.parametrize("task", ["t2v", "i2v", "v2v"])
@pytest.mark.parametrize(("size", "seed"), list(zip(SIZES, (0, 1234), strict=True)))
def test_same_seed_same_latents(pipelines, variant, settings, task, size, seed):
    assert difference(pipelines, variant, settings, task, size, seed) <= 1e-4


@pytest.mark.parametrize(("variant", "settings"), CASES[2:4])
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_skip_first_chunk(pipelines, variant, settings, task):
    settings = settings | {"is_skip_first_chunk": True}
    assert difference(pipelines, variant, settings, task, SIZES[0], 5) <= 1e-4
    _, ours = pipelines(variant)
    assert len(ours.steps_per_chunk(99)) == 3


def test_mid_without_zero_init_and_without_guidance(pipelines):
    settings = {"pyramid_num_inference_steps_list": [3, 3, 3], "guidance_scale": 5.0, "use_zero_init": False}
    assert difference(pipelines, "mid", settings, "t2v", SIZES[0], 5, 1) <= 1e-4
    settings = {"pyramid_num_inference_steps_list": [3, 3, 3], "guidance_scale": 1.0}
    assert difference(pipelines, "mid", settings, "t2v", SIZES[0], 5, 1) <= 1e-4


@pytest.mark.parametrize("stages", [2, 4])
def test_other_stage_counts(pipelines, stages):
    settings = {"pyramid_num_inference_steps_list": [2] * stages, "guidance_scale": 1.0}
    theirs, ours = pipelines("mid")
    bounds = [i / stages for i in range(stages + 1)]
    released_theirs, released_ours = theirs.scheduler, ours.scheduler
    theirs.scheduler = released_theirs.from_config(released_theirs.config, stages=stages, stage_range=bounds)
    ours.scheduler = type(released_ours)(stages=stages, stage_range=tuple(bounds), time_shift_type="exponential")
    try:
        assert difference(pipelines, "mid", settings, "t2v", (128, 256), 5, 1) <= 1e-4
    finally:
        theirs.scheduler, ours.scheduler = released_theirs, released_ours


def test_44_chunks_do_not_accumulate_errors(pipelines):
    settings = {"pyramid_num_inference_steps_list": [1, 1, 1], "guidance_scale": 1.0}
    assert difference(pipelines, "distilled", settings, "t2v", (64, 64), 0, chunks=44) <= 1e-3


def test_euler_equals_reference(pipelines):
    theirs, ours = pipelines("base")
    released = theirs.scheduler
    theirs.scheduler = released.from_config(released.config, scheduler_type="euler")
    _, height, width = 0, 64, 128
    call = {"prompt_embeds": torch.randn(1, 512, 32), "height": height, "width": width, "num_frames": 33,
            "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}  # fmt: skip
    expected = theirs(**call, generator=torch.Generator().manual_seed(0)).frames
    theirs.scheduler = released
    result = ours(**call, solver="euler", generator=torch.Generator().manual_seed(0)).latents
    assert (result - expected).abs().max() / expected.std() <= 1e-4


def test_schedule_changes_only_later_chunks(pipelines):
    _, ours = pipelines("distilled")
    call = {"width": 64, "height": 64, "num_frames": 33 * 6, "output_type": "latent", "blend": 2,
            "pyramid_num_inference_steps_list": [1, 1, 1]}  # fmt: skip
    rows = [(0, "a calm sea"), (2, "clouds"), (4, "a storm")]
    before = ours(**call, prompt_schedule=rows, generator=torch.Generator().manual_seed(0)).latents
    rows[2] = (4, "a rainbow")
    after = ours(**call, prompt_schedule=rows, generator=torch.Generator().manual_seed(0)).latents
    # The new prompt has weight 0 in its first chunk, 4.
    assert torch.equal(before[:, :, : 5 * 9], after[:, :, : 5 * 9])
    assert not torch.equal(before[:, :, 5 * 9 :], after[:, :, 5 * 9 :])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": torch.zeros(1, 20, 3, 64, 64)}, "video has 20 frames"),
        ({"image": torch.zeros(1, 3, 64, 64), "video": torch.zeros(1, 33, 3, 64, 64)}, "both given"),
        ({"image": torch.zeros(1, 3, 32, 64)}, "image has shape"),
        ({"image": "cat.png"}, "image is a str"),
        ({"solver": "heun"}, "solver='heun' is unknown"),
        ({"zero_steps": -1}, "zero_steps=-1"),
        ({"image": torch.zeros(2, 3, 64, 64)}, "batch of 2 for 1 prompts"),
        ({"negative_prompt": ["a", "b"], "guidance_scale": 5.0}, "negative_prompt has a batch of 2 for 1"),
        ({"video": []}, "video has no frames"),
        ({"prompt": None, "prompt_schedule": []}, "prompt schedule begins"),
    ],
)
def test_bad_input_is_refused_before_sampling(pipelines, changes, message, monkeypatch):
    _, ours = pipelines("mid")
    monkeypatch.setattr(ours.transformer, "forward", lambda *_: pytest.fail("sampling started"))
    call = {"prompt": "a boat", "width": 64, "height": 64, "num_frames": 33, "guidance_scale": 1.0}
    with pytest.raises(HeliosError, match=message):
        ours(**(call | changes))


def test_an_unknown_keyword_fails_as_in_python(pipelines):
    """Diffusers' keep_first_frame=False crashes in the middle; here the keyword does not exist."""
    _, ours = pipelines("mid")
    with pytest.raises(TypeError, match="keep_first_frame"):
        ours(prompt="a boat", keep_first_frame=False)
