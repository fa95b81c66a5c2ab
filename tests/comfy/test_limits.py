"""Inputs far beyond what a node means: refused at once, in one sentence, under the input that is wrong."""

import os
import shutil
import time

import pytest
from helios_comfy_graphs import SIZE, TINY, film, node
from safetensors.torch import load_file

from helios_core.take.store import FOLDER_NAME
from helios_setup.errors import PromptRejectedError
from helios_setup.server import failure

HANG_SECONDS = 30
LONG_DIGITS = "9" * 5000
NAN = float("nan")
SHOWN = node("PreviewAny", source=["tried", 0])


def base(comfy):
    return comfy.log_file.parent


def ended(comfy, graph) -> str | None:
    """Why a graph failed, None for a success; the server answers all the while and is done soon."""
    prompt_id = comfy.queue(graph)
    deadline = time.monotonic() + 2 * HANG_SECONDS
    while time.monotonic() < deadline:
        entry = comfy.get(f"/history/{prompt_id}").get(prompt_id)
        if entry is not None:
            return failure(entry)
        time.sleep(0.1)
    comfy.interrupt()
    raise AssertionError("not done: a hang")


def refused(comfy, graph) -> str:
    try:
        message = ended(comfy, graph)
    except PromptRejectedError as error:
        assert error.status == 400
        message = str(error)
    assert message and "\n" not in message.strip() and len(message) < 600, f"{message!r:.700}"
    return message


def errors(comfy, graph, key: str) -> list[tuple[str, str, str]]:
    """Kind, input and details of what a rejection says of one node."""
    status, body = comfy.post_raw("/prompt", {"prompt": graph})
    assert status == 400
    found = body["node_errors"][key]["errors"]
    return [(error["type"], error["extra_info"].get("input_name", ""), error["details"]) for error in found]


# -- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gamma": "1e999999999"}, "gamma='1e999999999' is not a number"),
        ({"gamma": "1e-999999999"}, "gamma='1e-999999999' is not a number"),
        ({"gamma": "1e400"}, "gamma='1e400' is not a number"),
        ({"gamma": "1e-400"}, "gamma=0.0 must be above 0"),
        ({"gamma": "nan"}, "gamma='nan' is not a number"),
        ({"gamma": f"1/{LONG_DIGITS}"}, "gamma='1/999"),
        ({"steps": "100000000,1,1"}, "give 3 numbers of 1 to 1000"),
        ({"steps": "1000000000000000000,1,1"}, "give 3 numbers of 1 to 1000"),
        ({"steps": f"{'1' * 400},1,1"}, "give 3 numbers of 1 to 1000"),
        ({"steps": f"{LONG_DIGITS},1,1"}, "is not a list of numbers"),
        ({"steps": "1," * 50_000}, "is not a list of numbers"),
        ({"stage_range": "0,nan,nan,1"}, "must rise from 0 to 1"),
    ],
    ids=lambda value: str(value)[:24],
)
@pytest.mark.parametrize("kind", ["HeliosDMDSampler", "HeliosPyramidSampler"])
def test_what_no_sampler_can_do_is_refused(comfy, kind, changes, words):
    declared = {name: spec[1] for part in comfy.object_info(kind)["input"].values() for name, spec in part.items()}
    inputs = {name: options.get("default", "unipc") for name, options in declared.items()}
    tried = node(kind, **inputs | changes)
    begun = time.monotonic()
    assert words in refused(comfy, {"tried": tried, "shown": SHOWN})
    assert time.monotonic() - begun < HANG_SECONDS


@pytest.mark.parametrize("gamma", ["1/3", " 1/3 ", "0.25", "1e-3", "1_0/30"])
def test_gamma_in_range_is_taken(comfy, gamma):
    tried = node("HeliosDMDSampler", steps="1, 1, 1", amplify_first_chunk=True, stage_range="", gamma=gamma)
    assert ended(comfy, {"tried": tried, "shown": SHOWN}) is None


def test_nan_is_refused_at_every_number_in_validation(comfy):
    tried = []
    for kind, info in comfy.object_info().items():
        for part in info["input"].values() if kind.startswith("Helios") else ():
            for name, (types, *_) in part.items():
                if types == "FLOAT":
                    found = errors(comfy, {"tried": node(kind, **{name: NAN}), "shown": SHOWN}, "tried")
                    assert ("value_smaller_than_min", name, name) in found, f"{kind}.{name}: {found}"
                    tried.append(name)
    assert {"cfg", "fps", "strength", "noise_sigma_min", "noise_sigma_max"} <= set(tried)


def test_nan_through_a_link_is_refused(comfy):
    graph = film("nan", chunks=1, cfg=["number", 0])
    graph["number"] = node("PrimitiveFloat", value=NAN)
    assert "cfg=nan is not a finite number" in refused(comfy, graph)
    # Core writes NaN into its answers, which then are no JSON to any page that is opened later.
    comfy.post_raw("/history", {"clear": True})


# -- links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [["nowhere", 0], ["history", 7], ["astray", 0]], ids=["nowhere", "slot", "further"])
@pytest.mark.parametrize("key", ["model", "render", "saved"])
def test_a_link_of_an_input_that_no_node_declares_is_refused(comfy, key, link):
    """To no node, to no output of one that was run before, or to one that is linked to no node itself.

    Core's queue would end for good.
    """
    graph = film("linked", chunks=1)
    assert failure(comfy.run(graph)) is None
    graph["saved"] = node("HeliosSaveHistory", history=["render", 1], filename_prefix="linked")
    graph["astray"] = node("HeliosEmptyHistory", width=["nowhere", 0], height=SIZE, batch_size=1)
    graph[key]["inputs"]["unknown"] = link
    status, body = comfy.post_raw("/prompt", {"prompt": graph})
    (error,) = body["node_errors"][key]["errors"]
    assert "'unknown' is linked, but Helios" in error["details"]
    if key == "saved":  # the film is an output of its own
        assert failure(comfy.wait(body["prompt_id"])) is None
    else:
        assert status == 400


def test_every_helios_node_refuses_it(comfy):
    """Of the inputs that it declares, a growing one's rows among them, none is meant."""
    kinds = [kind for kind in comfy.object_info() if kind.startswith("Helios")]
    assert len(kinds) > 20
    for kind in kinds:
        for name in ("unknown", "rows.unknown", "parts.part_999"):
            found = errors(comfy, {"tried": node(kind, **{name: ["nowhere", 0]}), "shown": SHOWN}, "tried")
            assert any(f"'{name}' is linked, but {kind} has no such input" in details for *_, details in found), kind


# -- texts --------------------------------------------------------------------------------------------


def schedule(kind: str, **inputs):
    """A schedule node behind helios-tiny's text encoder."""
    graph = {"clip": node("HeliosTextEncoderLoader", text_encoder=TINY), "shown": SHOWN}
    graph["text"] = node("CLIPTextEncode", clip=["clip", 0], text="a boat")
    return graph | {"tried": node(kind, blend=3, **inputs)}


@pytest.mark.parametrize("space", ["\n", " \n"])
def test_long_white_space_in_a_schedule_stops_nobody(comfy, space):
    text = "0: a" + space * 150_000 + "x"
    assert ended(comfy, schedule("HeliosPromptScheduleText", clip=["clip", 0], text=text)) is None


def test_numbers_of_many_digits_in_texts_are_refused(comfy):
    rows = schedule("HeliosPromptScheduleText", clip=["clip", 0], text=f"0: a\n{LONG_DIGITS}: b")
    assert "prompt schedule has a row at chunk '999" in refused(comfy, rows)
    chunks = {"rows.row_0": ["text", 0], "first_chunks": f"0, {LONG_DIGITS}"}
    assert "is not a list of chunk numbers" in refused(comfy, schedule("HeliosPromptSchedule", **chunks))


@pytest.mark.parametrize("row", [0, "a boat", {"a": 1}])
def test_a_row_without_a_link_is_refused_by_name(comfy, row):
    rows = {"rows.row_0": ["text", 0], "rows.row_1": row, "first_chunks": "0, 1"}
    assert "rows.row_1 is " in refused(comfy, schedule("HeliosPromptSchedule", **rows))
    video = node("HeliosJoinVideos", **{"parts.part_0": row})
    assert "parts.part_0 is " in refused(comfy, {"tried": video})


def test_half_a_surrogate_pair_is_read_as_a_question_mark(comfy):
    """JSON may carry it, and no tokenizer takes it."""
    assert ended(comfy, schedule("HeliosPromptScheduleText", clip=["clip", 0], text="0: a \ud800 boat")) is None


def test_captions_are_found_in_bounded_time(comfy):
    """Nodes that nothing executes, seven links each to the next: 7^10 ways up."""
    graph = film("links", chunks=1, seed=301)
    # A slot that is no number, at an input that is not declared: core neither follows nor refuses it.
    graph["positive"]["inputs"].update(text="", value=["s0", None])
    names = ("text", "value", "string", "prompt", "positive", "conditioning", "conditioning_1")
    for i in range(10):
        graph[f"s{i}"] = node("CLIPTextEncode", **{name: [f"s{i + 1}", None] for name in names})
    graph["s10"] = node("CLIPTextEncode")
    assert ended(comfy, graph) is None


# -- names and files ----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_read_hides_no_node(comfy):
    folder = base(comfy) / "models" / "diffusers" / "hostile"
    folder.mkdir(parents=True)
    index = folder / "model_index.json"
    try:
        for content in (
            '{"a":' * 100_000,
            '{"_class_name": ' + LONG_DIGITS + "}",
            "[]",
            "null",
            '{"_class_name": []}',
            "",
        ):
            index.write_text(content)
            info = comfy.object_info()
            for loader in ("HeliosModelLoader", "HeliosTextEncoderLoader", "HeliosVAELoader"):
                assert loader in info, f"{content[:40]!r} hides {loader}"
        index.write_bytes(b"\xff\xfe\x00")
        assert "HeliosModelLoader" in comfy.object_info()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("occupied.txt/x", "filename_prefix='occupied.txt/x' cannot be used"),
        ("a" * 300, "has a name of more than 200 bytes"),
        ("a" * 300 + "/x", "File name too long"),
        ("\0", "filename_prefix="),
        ("\ud800/x", "filename_prefix="),
    ],
    ids=["file", "long", "long folder", "nul", "surrogate"],
)
def test_a_history_that_cannot_be_written_is_told_in_one_sentence(comfy, prefix, words):
    (base(comfy) / "output" / "occupied.txt").write_text("a file where a folder could be")
    begun = node("HeliosEmptyHistory", width=SIZE, height=SIZE, batch_size=1)
    graph = {"begun": begun, "save": node("HeliosSaveHistory", history=["begun", 0], filename_prefix=prefix)}
    assert words in refused(comfy, graph)


def test_a_films_name_that_is_too_long_is_refused(comfy):
    """Before anything is made, where the graph tells; what core puts into it is known later."""
    picture = node("EmptyImage", width=SIZE, height=SIZE, batch_size=2, color=0)
    joined = node("HeliosJoinVideos", **{"parts.part_0": ["picture", 0]}, filename_prefix="é" * 101)
    graph = {"picture": picture, "joined": joined}
    ((_, _, details),) = errors(comfy, graph, "joined")
    assert "has a name of more than 200 bytes" in details
    joined["inputs"]["filename_prefix"] = "é" * 97 + "%width%"  # 64
    assert ended(comfy, graph) is None
    joined["inputs"]["filename_prefix"] = "é" * 100
    assert ended(comfy, graph) is None
    joined["inputs"]["filename_prefix"] = "é" * 100 + "%width%"
    assert "has a name of more than 200 bytes" in refused(comfy, graph)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("HeliosLoadModel", "model"),
        ("HeliosModelLoader", "model"),
        ("HeliosTextEncoderLoader", "text_encoder"),
        ("HeliosVAELoader", "vae"),
        ("HeliosLoadHistory", "file"),
    ],
)
def test_names_that_are_no_names_are_told_under_their_input(comfy, kind, name):
    def told(**inputs):
        return [error for error in errors(comfy, {"tried": node(kind, **inputs), "shown": SHOWN}, "tried")
                if error[1] in ("", name)]  # fmt: skip

    assert told() == [("required_input_missing", name, name)]
    for value in (None, {}, {"a": 1}, {"__value__": ["a"]}, "x" * 100_000):
        ((error, _, details),) = told(**{name: value})
        assert error == "custom_validation_failed" and details.startswith(f"{name} - ") and len(details) < 400


def test_a_bad_take_is_told_once_under_no_other_input(comfy):
    graph = film()
    inputs = {name: graph["render"]["inputs"][name] for name in CHAIN_INPUTS}
    del graph["render"]
    graph["tried"] = node("HeliosChunkChain", **inputs | {"num_chunks": 1}, take="a/b" * 30_000, seed_changes="")
    graph["shown"] = SHOWN
    message = refused(comfy, graph)
    assert "take 'a/b" in message and "seed_changes" not in message


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_store_that_a_link_leads_out_of_the_output_folder_is_refused(comfy, tmp_path):
    store, aside = base(comfy) / "output" / FOLDER_NAME, tmp_path / "aside"
    store.mkdir(exist_ok=True)
    store.rename(aside)
    (outside := tmp_path / "outside").mkdir()
    try:
        store.symlink_to(outside)
        assert "leads out of the output folder by a link" in refused(comfy, film("linked-store", chunks=1))
        store.unlink()
        store.mkdir()
        (store / "takes").symlink_to(outside)
        assert "leads out of the output folder by a link" in refused(comfy, film("linked-store", chunks=1))
    finally:
        if store.is_symlink():
            store.unlink()
        else:
            shutil.rmtree(store)
        aside.rename(store)
    assert not list(outside.iterdir())


CHAIN_INPUTS = ("model", "positive", "negative", "cfg", "sampler", "history", "seed")


def test_what_is_no_node_output_is_refused(comfy):
    assert "model is 'x', not a MODEL" in refused(comfy, film("socket", chunks=1, model="x"))
    assert "positive is 7, not a CONDITIONING" in refused(comfy, film("socket", chunks=1, positive=7))


# -- core's samplers ----------------------------------------------------------------------------------


def core_sampler(width: int = SIZE, height: int = SIZE, length: int = 33):
    """KSampler on a history of 64x64."""
    graph = film()
    del graph["render"], graph["sampler"], graph["vae"]
    conditioning = {"positive": ["positive", 0], "negative": ["negative", 0]}
    graph["apply"] = node("HeliosApplyHistory", **conditioning, history=["history", 0])
    graph["empty"] = node("EmptyHunyuanLatentVideo", width=width, height=height, length=length, batch_size=1)
    graph["sample"] = node(
        "KSampler", model=["model", 0], positive=["apply", 0], negative=["apply", 1], latent_image=["empty", 0],
        seed=3, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    graph["save"] = node("SaveLatent", samples=["sample", 0], filename_prefix="limits/core")
    return graph


def test_core_samplers_refuse_a_latent_that_does_not_fit_the_history(comfy):
    assert "but the history is 64x64" in refused(comfy, core_sampler(width=2 * SIZE))
    assert "but the history is 64x64" in refused(comfy, core_sampler(height=2 * SIZE))
    assert "one Helios chunk is [B,16,9,H/8,W/8]" in refused(comfy, core_sampler(length=65))
    assert ended(comfy, core_sampler()) is None
    (saved,) = (base(comfy) / "output" / "limits").glob("core_*.latent")
    assert load_file(saved)["latent_tensor"].shape == (1, 16, 9, SIZE // 8, SIZE // 8)
