"""What the graph alone shows to be wrong is refused by POST /prompt: nothing was loaded, no node ran."""

import pytest
from helios_comfy_graphs import SIZE, film, node

from helios_core.take.history import History
from helios_core.take.history_file import save_history

BASE = "helios-tiny-base"


def rejection(comfy, graph, key="render"):
    """What is said of one node: type, the input that core names, the sentence. Nothing may have been queued."""
    status, body = comfy.post_raw("/prompt", {"prompt": graph, "client_id": comfy.client_id})
    assert status == 400, body
    found = body["node_errors"][key]["errors"]
    return [(e["type"].split("_")[0], e["extra_info"].get("input_name"), e["details"]) for e in found]


def sentence(comfy, graph, key="render") -> str:
    """The one error of a graph."""
    ((kind, name, details),) = rejection(comfy, graph, key)
    assert (kind, name) == ("exception", None) or key != "render", "no input is named but those in the sentence"
    return details


def sized(width, height=64, **more):
    graph = film(**more)
    graph["history"] = node("HeliosEmptyHistory", width=width, height=height, batch_size=1)
    return graph


def test_a_size_that_the_pyramid_cannot_divide(comfy):
    assert sentence(comfy, sized(336)) == "width=336 is not a positive multiple of 64; use 320 or 384."
    number = sized(["number", 0])
    number["number"] = node("PrimitiveInt", value=336)
    assert "width=336" in sentence(comfy, number)
    late = sized(336)
    late["first"] = node("HeliosSampleChunk", **{k: late["render"]["inputs"][k] for k in CHUNK})
    late["render"]["inputs"]["history"] = ["first", 1]
    assert "width=336" in rejection(comfy, late, "first")[0][2], "the history is followed through a chunk node"


def test_what_a_switch_hands_on(comfy):
    graph = sized(336)
    graph["good"] = node("HeliosEmptyHistory", width=SIZE, height=SIZE, batch_size=1)
    graph["which"] = node("ComfySwitchNode", switch=True, on_true=["history", 0], on_false=["good", 0])
    graph["render"]["inputs"]["history"] = ["which", 0]
    assert "width=336" in sentence(comfy, graph)
    graph["which"]["inputs"] |= {"switch": ["which", 0]}
    assert comfy.post_raw("/prompt", {"prompt": graph})[0] == 400, "a circle ends"
    graph["which"]["inputs"] |= {"switch": False, "on_false": ["history", 0]}
    assert "width=336" in sentence(comfy, graph)


def test_a_saved_history(comfy):
    """Of a size that Base takes and Distilled does not."""
    file = comfy.log_file.parent / "input" / "wide.safetensors"
    save_history(History.empty(336, 64, 1), file)
    graph = film()
    graph["history"] = node("HeliosLoadHistory", file=file.name)
    assert "width=336" in sentence(comfy, graph)
    file.unlink()


CHUNK = ("model", "positive", "negative", "cfg", "sampler", "history", "seed")


def test_a_size_that_nothing_divides_is_told_at_its_node(comfy):
    assert "width=330 is not a positive multiple of 16" in sentence(comfy, sized(330), "history")


@pytest.mark.parametrize("loader", ["HeliosModelLoader", "HeliosLoadModel"])
def test_the_sampler_of_another_variant(comfy, loader):
    graph = film()
    graph["model"] = node(loader, model=BASE)
    wanted = "model is Helios base but the sampler is for distilled; connect the Helios Base Sampler node."
    assert sentence(comfy, graph) == wanted
    graph["compiled"] = node("TorchCompileModel", model=["model", 0], backend="inductor")
    graph["render"]["inputs"]["model"] = ["compiled", 0]
    assert sentence(comfy, graph) == wanted
    if loader == "HeliosLoadModel":
        graph["model"]["inputs"]["model"] = "base"
        assert sentence(comfy, graph) == wanted


def test_a_sampler_of_core(comfy):
    graph = film()
    graph["sampler"] = node("KSamplerSelect", sampler_name="euler")
    assert sentence(comfy, graph) == "sampler is a KSAMPLER, not a Helios sampler; connect a Helios sampler node."


def test_several_videos_for_one_file(comfy):
    graph = film()
    graph["history"]["inputs"]["batch_size"] = 2
    assert "history has a batch of 2" in sentence(comfy, graph)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"steps": "2, 2"}, "give 3 numbers"), ({"gamma": "1"}, "at most 1/3"), ({"steps": "0, 1, 1"}, "one per stage")],
)
def test_settings_of_a_sampler(comfy, changes, words):
    graph = film()
    graph["sampler"]["inputs"] |= changes
    assert words in sentence(comfy, graph, "sampler")


def test_schedules(comfy):
    graph = film()
    graph["text"] = node("HeliosPromptScheduleText", clip=["clip", 0], text="0: a\n0: b", blend=3)
    graph["render"]["inputs"]["positive"] = ["text", 0]
    assert "row at chunk 0 follows" in sentence(comfy, graph, "text")
    rows = {"rows.row_0": ["positive", 0], "rows.row_1": ["negative", 0]}
    graph["text"] = node("HeliosPromptSchedule", **rows, first_chunks="0")
    assert "has 1 numbers for 2 rows" in sentence(comfy, graph, "text")


def test_seed_changes_and_the_file_name_are_each_told_once_and_alone(comfy):
    ((kind, name, details),) = rejection(comfy, film(seed_changes="7=5"))
    assert (kind, name) == ("custom", "seed_changes") and "filename_prefix" not in details
    told = sentence(comfy, film(prefix="../outside"))
    assert told.startswith("filename_prefix='../outside' is not a name") and "seed_changes" not in told


def core(**latent):
    """KSampler of core behind a history of 64x64."""
    graph = film()
    del graph["render"], graph["sampler"], graph["vae"]
    graph["apply"] = node(
        "HeliosApplyHistory", positive=["positive", 0], negative=["negative", 0], history=["history", 0]
    )
    graph["empty"] = node(
        "EmptyHunyuanLatentVideo", **{"width": SIZE, "height": SIZE, "length": 33, "batch_size": 1, **latent}
    )
    graph["sample"] = node(
        "KSampler", model=["model", 0], positive=["apply", 0], negative=["apply", 1], latent_image=["empty", 0], seed=3,
        steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    graph["save"] = node("SaveLatent", samples=["sample", 0], filename_prefix="checks/core")
    return graph


def test_latents_of_cores_samplers(comfy):
    assert "one Helios chunk is [B,16,9,H/8,W/8]" in sentence(comfy, core(length=65), "apply")
    plain = core(length=1)
    del plain["apply"]
    plain["sample"]["inputs"] |= {"positive": ["positive", 0], "negative": ["negative", 0]}
    assert "one Helios chunk is [B,16,9,H/8,W/8]" in sentence(comfy, plain, "model")
    assert "shape [1, 16, 9, 8, 16] but the history is 64x64" in sentence(comfy, core(width=128), "apply")
    guided = core(height=128)
    guided["guider"] = node("BasicGuider", model=["model", 0], conditioning=["apply", 0])
    guided["noise"] = node("RandomNoise", noise_seed=3)
    guided["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=1, denoise=1.0)
    guided["euler"] = node("KSamplerSelect", sampler_name="euler")
    guided["sample"] = node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
                            sigmas=["sigmas", 0], latent_image=["empty", 0])  # fmt: skip
    assert "shape [1, 16, 9, 16, 8] but the history is 64x64" in sentence(comfy, guided, "apply")


def test_what_only_running_tells_is_let_through(comfy):
    """Nothing is refused for want of knowledge: a size from an unknown node, a model from one."""
    graph = sized(["math", 0])
    graph["math"] = node("PrimitiveInt", value=SIZE)
    status, body = comfy.post_raw("/prompt", {"prompt": graph, "client_id": comfy.client_id})
    assert status == 200 and not body["node_errors"]
    comfy.interrupt()
    comfy.wait(body["prompt_id"])
