"""Graphs in API format, small ones that run, and what a hostile client makes of them."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from helios_comfy_graphs import TINY, film, node
from helios_fuzz_strategies import LONG_DIGITS, copied, numbers, texts, values
from hypothesis import strategies as st

from helios_setup.paths import API_WORKFLOWS
from helios_setup.workflow import fill_workflow, workflow_variant

HISTORY, LORA = "saved.safetensors", "change.safetensors"
SIZE = (64, 64)
# Within a node's limits these only say how long it works, which is no fault.
_CAPS = {"width": 128, "height": 128, "batch_size": 2, "num_chunks": 2, "max_chunks": 2, "steps": 8, "blend": 50}
_ABSOLUTE = str(Path(tempfile.gettempdir()) / "helios_outside" / "x")
_PATHS = (
    "../outside", "../../outside/x", _ABSOLUTE, "a/../../outside", "..\\outside", "~/x", ".", "..", "/",
    "a/", "a//b", "x\0y", "\0", "a" * 300, "é" * 200, "a/" * 3000 + "b", "file.txt/x", "%date:yyyy%", "%width%/x",
    "helios_store/x", "con", " ", "\n", "\ud800", "../outside/x [output]", "x [input]", "x [temp]", "\u202e", "*", "?",
)  # fmt: skip
_FILES = (*_PATHS, "../saved.safetensors", f"{HISTORY} [output]", f"{HISTORY}\0", f"./{HISTORY}", "example.mp4",
          "/etc/passwd", "../../../../etc/passwd", TINY, f"../diffusers/{TINY}", f"{TINY}/../{TINY}", f"{TINY}/vae",
          f"{TINY}/transformer", "Helios-Distilled", f"{TINY} ", LORA, f"../loras/{LORA}")  # fmt: skip
_LISTS = (
    "", ",", "1,1", "0,0,0", "-1,1,1", "1,1,1,", "1;1;1", "1.5,1,1", "1e3,1,1", "100000000,1,1", "1e18,1,1", "٣,1,1",
    "nan,1,1", "inf,1,1", f"{LONG_DIGITS},1,1", "1," * 50_000, "1" * 400, "0, 1/3, 2/3, 1", "0,1,0,1", "0,0,0,1",
    "0,nan,nan,1", "1/0,1,1,1", "0, 1e-320, 2/3, 1", "0,7,14", "0,0", "7,0", "0", "-0", " 0 , 1 ",
)  # fmt: skip
_RATIOS = (
    "1e999999999", "1e-999999999", "1e400", "1e-400", "0", "-1/3", "1/0", "0/0", "nan", "inf", "1/3", "0.3333", "٣/١٠",
    f"1/{LONG_DIGITS}", f"{LONG_DIGITS}/3", "1/3/3", "1//3", "", "1e-320", "0x1p-2", "1_0/30",
)  # fmt: skip
_SEEDS = (
    "0: 1", "-1: 2", "0: -1", "0: 18446744073709551615", "0: 18446744073709551616", f"{LONG_DIGITS}: 1", "0:", ":",
    f"0: {LONG_DIGITS}", "0: 1," * 20_000, "1: 2, 1: 3", "0: nan", "0: 1e3", "٣: 1", "0:1 1:2", "0: 1\0",
)  # fmt: skip
_SCHEDULES = (
    "0: a" + "\n" * 40_000 + "x", "0: a" + " \n" * 40_000 + "x", "1: a", "0 a", "0:", f"{LONG_DIGITS}: a", "0: a\0b",
    "0: a\n0: b", "0: a / 7: b", "0: " + "(" * 5000, "0: \ud800", "-1: a", "0: a\n-7: b", "/" * 9999, "٠: a",
    "0: a\n" + "".join(f"{i}: b\n" for i in range(1, 40)), "0: &amp;amp;amp;", "0: <extra_id_0>",
)  # fmt: skip
_SPECIAL = {
    "filename_prefix": _PATHS, "take": _PATHS, "file": _FILES, "model": _FILES, "text_encoder": _FILES, "vae": _FILES,
    "lora_name": _FILES, "steps": _LISTS, "stage_range": _LISTS, "first_chunks": _LISTS, "gamma": _RATIOS,
    "prompt_changes": _LISTS, "chunks": _LISTS,
    "seed_changes": _SEEDS, "text": _SCHEDULES, "image": _FILES,
}  # fmt: skip


def graphs() -> dict[str, dict[str, Any]]:
    """Runnable graphs over every Helios node but the one that downloads."""
    found = {path.stem: _quick(path.stem) for path in sorted(API_WORKFLOWS.glob("*.json"))}
    found["render"] = film(chunks=1, take="fuzz", seed_changes="0: 5")
    found["saved"] = film(chunks=1)
    found["saved"]["history"] = node("HeliosLoadHistory", file=HISTORY)
    found["saved"]["lora"] = node("HeliosLoraLoader", model=["model", 0], lora_name=LORA, strength=1.0)
    found["saved"]["render"]["inputs"]["model"] = ["lora", 0]
    found["text"] = film(chunks=1)
    found["text"]["positive"] = node("HeliosPromptScheduleText", clip=["clip", 0], text="0: a boat\n1: rain", blend=3)
    found["text"]["keep"] = node("HeliosSaveHistory", history=["render", 1], filename_prefix="helios_history/fuzz")
    found["text"]["drift"] = node("HeliosDriftReport", video=["render", 0], chunk_frames=33, prompt_changes="1")
    found["saved"]["steady"] = node(
        "HeliosAntiDrift", history=["history", 0], threshold=0.1, strength=0.1, momentum=0.9
    )
    found["saved"]["anchor"] = node("HeliosAnchorHistory", history=["steady", 0], strength=0.5)
    found["saved"]["render"]["inputs"]["history"] = ["anchor", 0]
    found["render"]["picture"] = node("EmptyImage", width=32, height=32, batch_size=1, color=255)
    found["render"]["end"] = node("HeliosEndFrame", sampler=["sampler", 0], vae=["vae", 0], image=["picture", 0],
                                  history=["history", 0], num_chunks=1, guided_chunks=1, strength=1.0)  # fmt: skip
    found["render"]["render"]["inputs"]["sampler"] = ["end", 0]
    found["render"]["cut"] = node("HeliosSplitVideo", video=["render", 0], chunks="0", chunk_frames=33)
    larger = {"multiplier": 2, "frames_at_once": 8, "codec": "h264", "quality": 30, "filename_prefix": "fuzz"}
    found["render"]["larger"] = node("HeliosProcessVideo", video=["cut", 0], **larger, scale=1.5)
    found["render"]["part"] = node("HeliosChunkFrames", film=["cut", 0], chunk=0, chunk_frames=33)
    found["render"]["shown"] = node("PreviewImage", images=["part", 0])
    found["render"]["drift"] = node("HeliosDriftReport", video=["cut", 0], chunk_frames=11, prompt_changes="1, 2")
    found["core"] = _core()
    return found


def _quick(name: str) -> dict[str, Any]:
    """A shipped workflow: helios-tiny, one chunk, one step a stage."""
    graph = json.loads((API_WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    graph = fill_workflow(graph, f"helios-tiny-{workflow_variant(name)}", size=SIZE)
    for item in graph.values():
        inputs = item["inputs"]
        if "steps" in inputs:
            inputs["steps"] = 2 if isinstance(inputs["steps"], int) else "1, 1, 1"
        if "first_chunks" in inputs:
            inputs["first_chunks"] = "0, 1, 2"
        inputs.update(dict.fromkeys(inputs.keys() & {"num_chunks", "max_chunks"}, 1))
    return graph


def _core() -> dict[str, Any]:
    """Core's sampler nodes around ours."""
    graph = film()
    del graph["render"]
    conditioning = {"positive": ["positive", 0], "negative": ["negative", 0]}
    graph["apply"] = node("HeliosApplyHistory", **conditioning, history=["history", 0])
    size = {"width": SIZE[0], "height": SIZE[1], "batch_size": 1}
    graph["empty"] = node("EmptyHunyuanLatentVideo", **size, length=33)
    graph["guider"] = node("BasicGuider", model=["model", 0], conditioning=["apply", 0])
    graph["noise"] = node("RandomNoise", noise_seed=3)
    graph["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=1, denoise=1.0)
    graph["sample"] = node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0],
                           sigmas=["sigmas", 0], latent_image=["empty", 0])  # fmt: skip
    graph["even"] = node("HeliosLatentColourAnchor", latent=["sample", 0], strength=0.5)
    graph["decode"] = node("HeliosDecode", latent=["even", 0], vae=["vae", 0])
    graph["hold"] = node("HeliosColourAnchor", images=["decode", 0], strength=1.0, chunk_frames=11)
    graph["keep"] = node("PreviewImage", images=["hold", 0])
    return graph


@st.composite
def changed_graphs(draw: Any, all_graphs: dict[str, dict[str, Any]], schema: dict[str, Any]) -> dict[str, Any]:
    """One of the graphs, with inputs of Helios nodes replaced, removed, added or linked to what does not fit."""
    graph = copied(all_graphs[draw(st.sampled_from(sorted(all_graphs)))])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        how = draw(st.sampled_from(["value", "value", "special", "special", "special", "link", "remove", "add"]))
        ours = [(key, name) for key, item in graph.items() if item["class_type"].startswith("Helios")
                for name in item["inputs"] if how != "special" or name in _SPECIAL]  # fmt: skip
        key, name = draw(st.sampled_from(sorted(ours)))
        inputs = graph[key]["inputs"]
        if how == "remove":
            del inputs[name]
        elif how == "add":
            declared = [key for part in schema[graph[key]["class_type"]]["input"].values() for key in part]
            inputs[draw(st.one_of(st.sampled_from(declared or ["x"]), texts))] = draw(values)
        elif how == "link":
            inputs[name] = draw(_links(sorted(graph)))
        elif how == "special":
            inputs[name] = draw(st.sampled_from(_SPECIAL[name]))
        else:
            inputs[name] = draw(st.one_of(numbers, values, texts))
    for item in graph.values():
        for name, value in item["inputs"].items():
            if name in _CAPS and _is_long_work(value, _CAPS[name]):
                item["inputs"][name] = _CAPS[name]
    return graph


def _links(nodes: list[str]) -> st.SearchStrategy[Any]:
    slots = st.one_of(st.sampled_from([0, 1, 2, -1, 99, True, 0.0, "0", None, 2**70]), numbers)
    return st.one_of(
        st.tuples(st.sampled_from(nodes), st.sampled_from([0, 1])).map(list),
        st.tuples(st.one_of(st.sampled_from(nodes), texts, numbers), slots).map(list),
        st.lists(values, max_size=3),
    )


def _is_long_work(value: Any, cap: int) -> bool:
    """Whether core takes it for a number above the cap that a node may well accept."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return math.isfinite(number) and cap < number < 2**31
