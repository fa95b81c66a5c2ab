"""Helios Load Model: what it takes, what it says is missing, and graphs that leave released values out."""

import shutil

import pytest
import torch
from helios_comfy_graphs import TINY, film, node
from helios_comfy_one_chunk import SAMPLE, SAVE, base, graph, latents, refused

from helios_core.commands.embedded import embedded

OWN = embedded("distilled")  # what "distilled" stands for where nothing is installed
SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"


def whole(choice: str) -> dict:
    """The graph of one chunk behind the one loader."""
    prompt = graph()
    prompt["model"] = node("HeliosLoadModel", model=choice)
    del prompt["clip"]
    prompt["text"]["inputs"]["clip"] = ["model", 1]
    return prompt


@pytest.fixture
def released(comfy, tiny_folder):
    """Where Helios-Distilled lies while a test runs: a copy of helios-tiny."""
    folder = base(comfy) / "models" / "diffusers" / "Helios-Distilled"
    yield shutil.copytree(tiny_folder("distilled"), folder)
    shutil.rmtree(folder)


def described(comfy, choice: str) -> dict:
    return comfy.get("/helios/models")["models"][choice]


def test_one_node_loads_what_the_three_loaders_load(comfy):
    apart = graph(OWN.name)
    apart["clip"]["inputs"]["text_encoder"] = OWN.name
    assert torch.equal(latents(comfy, whole("distilled")), latents(comfy, apart))


def test_its_sizes_are_the_models_own(comfy):
    prompt = whole("distilled")
    prompt["empty"]["inputs"] |= {"width": ["model", 3], "height": ["model", 4]}
    prompt[SAMPLE]["inputs"]["steps"] = 1
    width, height = OWN.size
    assert latents(comfy, prompt).shape[-2:] == (height // 8, width // 8)


def test_what_a_variant_stands_for_follows_what_is_installed(comfy, released):
    found = described(comfy, "distilled")
    assert (found["name"], found["size"], found["wanted"]["missing"]) == ("Helios-Distilled", [640, 384], [])
    (released / SHARD).unlink()
    found = described(comfy, "distilled")
    assert (found["name"], found["size"], found["wanted"]["missing"]) == (OWN.name, list(OWN.size), [SHARD])
    assert described(comfy, "Helios-Distilled")["missing"] == [SHARD]


def test_a_model_installed_later_is_taken_without_a_restart(comfy, tiny_folder):
    first = latents(comfy, whole("distilled"))
    folder = base(comfy) / "models" / "diffusers" / "Helios-Distilled"
    shutil.copytree(tiny_folder("distilled"), folder)
    try:
        entry = comfy.run(whole("distilled"))
        ran = {event.data["node"] for event in comfy.events(entry["prompt"][1], "executing")}
        assert {"model", SAMPLE, SAVE} <= ran, "the cached model was taken for Helios-Distilled"
    finally:
        shutil.rmtree(folder)
    assert torch.equal(latents(comfy, whole("distilled")), first)


def test_what_is_missing_is_refused_before_anything_loads(comfy, released):
    (released / SHARD).unlink()
    message = refused(comfy, whole("Helios-Distilled"))
    assert f"Helios-Distilled lacks {SHARD}; press Download in the node, or choose distilled" in message
    assert "Helios-Mid is not installed; press Download" in refused(comfy, whole("Helios-Mid"))
    assert "is neither a variant nor a Helios folder" in refused(comfy, whole("../secret"))


def test_released_values_may_be_left_out(comfy):
    """The graph that services write: nothing in it that has a released value. The same latents as with all of them."""
    given = {"helios": film(chunks=1, seed=77)}
    given["helios"]["sampler"] = node(
        "HeliosDMDSampler", steps="2, 2, 2", amplify_first_chunk=True, stage_range="", gamma="1/3"
    )
    given["short"] = film(chunks=1, seed=77)
    given["short"]["model"] = node("HeliosModelLoader", model=TINY)
    given["short"]["sampler"] = node("HeliosDMDSampler")
    saved = []
    for prompt in given.values():
        chain = prompt.pop("render")["inputs"]
        kept = ("model", "positive", "negative", "cfg", "sampler", "history", "seed")
        prompt["sample"] = node("HeliosSampleChunk", **{name: chain[name] for name in kept})
        prompt[SAVE] = node("SaveLatent", samples=["sample", 0], filename_prefix="test/short")
        saved.append(latents(comfy, prompt))
    assert torch.equal(*saved)


def test_only_what_has_no_released_value_is_required(comfy):
    info = comfy.object_info()
    for kind in ("HeliosBaseSampler", "HeliosPyramidSampler", "HeliosDMDSampler", "HeliosEmptyHistory"):
        assert not info[kind]["input"].get("required"), kind
    assert list(info["HeliosVideoHistory"]["input"]["required"]) == ["vae", "video"]
    assert list(info["HeliosLoadModel"]["input"]["required"]) == ["model"]
