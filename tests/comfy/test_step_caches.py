"""Core's EasyCache and LazyCache on a Helios MODEL."""

import json
import re

import pytest
import torch
from helios_comfy_graphs import SIZE, node
from safetensors.torch import load_file

SAMPLERS = {
    "base": node("HeliosBaseSampler", steps=20, solver="unipc"),
    "mid": node("HeliosPyramidSampler", steps="8, 8, 8", solver="unipc", cfg_zero_star=True, zero_init=True,
                zero_steps=1, stage_range="", gamma="1/3"),
}  # fmt: skip


def graph(variant, cache=None, chunks=2, **settings):
    model = f"helios-tiny-{variant}"
    found = {
        "model": node("HeliosModelLoader", model=model, weight_dtype="default", attention="auto"),
        "clip": node("HeliosTextEncoderLoader", text_encoder=model),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="a boat"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="blurry"),
        "history": node("HeliosEmptyHistory", width=SIZE, height=SIZE, batch_size=1),
        "sampler": SAMPLERS[variant],
    }
    if cache:
        options = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False} | settings
        found["cache"] = node(cache, model=["model", 0], **options)
    inputs = {"model": ["cache" if cache else "model", 0], "positive": ["positive", 0], "negative": ["negative", 0],
              "cfg": 5.0, "sampler": ["sampler", 0], "seed": 601}  # fmt: skip
    found["chain"] = node("HeliosChunkChain", **inputs, history=["history", 0], num_chunks=chunks)
    found["saved"] = node("SaveLatent", samples=["chain", 0], filename_prefix="caches")
    return found


def run(comfy, prompt):
    """Latents, and (skipped, all) steps of every chunk, as core's log says."""
    before = len(comfy.log())
    (shown,) = comfy.run(prompt)["outputs"]["saved"]["latents"]
    latents = load_file(comfy.log_file.parent / "output" / shown["subfolder"] / shown["filename"])["latent_tensor"]
    said = re.findall(r"(\w+Cache) - skipped (\d+)/(\d+) steps", comfy.log()[before:])
    return latents, [(int(skipped), int(steps)) for _, skipped, steps in said]


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
def test_every_stage_begins_with_an_empty_cache(comfy, cache):
    """At the least threshold nothing is skipped. Core's own reset skips all but a stage's first step."""
    plain, _ = run(comfy, graph("mid"))
    cautious, skipped = run(comfy, graph("mid", cache, reuse_threshold=0.01))
    assert skipped == [(0, 24)] * 2 and torch.equal(cautious, plain)
    eager, skipped = run(comfy, graph("mid", cache, reuse_threshold=1.0))
    assert all(count > 0 for count, _ in skipped) and not torch.equal(eager, plain)


@pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
def test_steps_are_saved_and_nothing_goes_from_one_chunk_into_the_next(comfy, cache):
    """The second chunk of a chain against the same chunk from a file, with a cache that has never seen another."""
    plain, _ = run(comfy, graph("base", chunks=2))
    prompt = graph("base", cache, chunks=2, reuse_threshold=0.5)
    both, skipped = run(comfy, prompt)
    assert all(5 <= count <= 12 and steps == 20 for count, steps in skipped)
    assert 0 < off(both, plain) < 0.2
    prompt["chain"]["inputs"]["num_chunks"] = 1
    prompt["keep"] = node("HeliosSaveHistory", history=["chain", 1], filename_prefix=f"helios_history/{cache}")
    run(comfy, prompt)
    (file,) = (comfy.log_file.parent / "output" / "helios_history").glob(f"{cache}_*.safetensors")
    # Another value of verbose: core runs the cache's node again.
    alone = graph("base", cache, chunks=1, reuse_threshold=0.5, verbose=True)
    alone["history"] = node("HeliosLoadHistory", file=f"helios_history/{file.name} [output]")
    second, skipped_alone = run(comfy, alone)
    assert torch.equal(second, both[:, :, 9:]) and skipped_alone == skipped[1:]


def test_settings_of_a_cache_are_part_of_a_chunks_key(comfy):
    keys = set()
    for threshold in (None, 0.3, 0.4):
        prompt = graph(
            "base", threshold and "EasyCache", chunks=1, **({"reuse_threshold": threshold} if threshold else {})
        )
        prompt["sampler"] = node("HeliosBaseSampler", steps=1, solver="unipc")
        prompt["chain"]["inputs"]["take"] = f"cache {threshold}"
        run(comfy, prompt)
        manifest = comfy.log_file.parent / "output" / "helios_store" / "takes" / f"cache {threshold}.json"
        keys.add(json.loads(manifest.read_text())["chunks"][0]["key"])
    assert len(keys) == 3
