"""What runs, but not as the model was made for, is told under the node; what cannot run is refused."""

import pytest
from helios_comfy_graphs import SIZE, film, node
from helios_comfy_one_chunk import SAMPLE, graph, refused

PYRAMID = "Helios distilled is trained for Helios DMD Sampler; a sampler of core runs it at full size alone."
NO_HISTORY = "No history: this is the first chunk of a film. Helios Apply History goes on with one."


def told(comfy, prompt) -> dict[str, list[str]]:
    """The last text under each node of a prompt that succeeds, by line."""
    before = len(comfy.events())
    comfy.run(prompt)
    texts = [event.data for event in comfy.events()[before:] if event.type == "progress_text"]
    return {data["node"]: data["text"].splitlines() for data in texts}


def one_chunk(**changes) -> dict:
    prompt = film(chunks=1)
    inputs = {**prompt.pop("render")["inputs"], "num_chunks": 1, **changes}
    kept = ("model", "positive", "negative", "cfg", "sampler", "history", "seed", "num_chunks", "seed_changes")
    prompt["chain"] = node("HeliosChunkChain", **{name: inputs[name] for name in kept if name in inputs})
    prompt["save"] = node("SaveLatent", samples=["chain", 0], filename_prefix="test/warned")
    return prompt


def test_a_graph_as_released_warns_of_nothing(comfy):
    assert "chain" not in told(comfy, one_chunk(seed=811))


def test_guidance_of_the_distilled_model_and_a_late_seed_change(comfy):
    guidance, late = told(comfy, one_chunk(seed=812, cfg=4.0, seed_changes="0: 3, 5: 7"))["chain"]
    assert guidance == "cfg=4: Helios distilled needs no guidance. Set cfg to 1, which takes half the time."
    assert late == "seed_changes: this film ends before chunk 5, which changes nothing."


def test_a_sampler_of_core_on_a_pyramid_model_and_no_history(comfy):
    texts = told(comfy, graph() | {SAMPLE: changed(graph()[SAMPLE], seed=813)})[SAMPLE]
    assert sorted(texts) == [PYRAMID, NO_HISTORY], "each is told once, not at every step"


def test_a_sampler_of_core_on_base_is_what_it_was_trained_for(comfy):
    prompt = graph("helios-tiny-base")
    prompt[SAMPLE]["inputs"]["seed"] = 814
    assert told(comfy, prompt)[SAMPLE] == [NO_HISTORY]


def changed(entry: dict, **inputs) -> dict:
    return {**entry, "inputs": {**entry["inputs"], **inputs}}


@pytest.mark.parametrize("length", [1, 65])
def test_a_latent_that_is_no_chunk_is_refused_without_a_history_too(comfy, length):
    prompt = graph()
    prompt["empty"] = changed(prompt["empty"], length=length, width=SIZE)
    assert "one Helios chunk is [B,16,9,H/8,W/8], a length of 33" in refused(comfy, prompt)
