"""Fill an API-format workflow: which model, which words, how long."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

from helios_core.variants import CHUNK_FRAMES, DEFAULT, FPS, VARIANTS
from helios_setup.errors import SetupError

# Nodes that take a released folder, with the name of that input.
MODEL_INPUTS = {
    "HeliosLoadModel": "model",
    "HeliosModelLoader": "model",
    "HeliosTextEncoderLoader": "text_encoder",
    "HeliosVAELoader": "vae",
}
CHAIN_NODES = ("HeliosChunkChain", "HeliosRenderVideo", "HeliosLiveVideo")
# How the length is called, in chunks.
LENGTHS = ("num_chunks", "max_chunks")
# How the prompt's connection is called from node to node, up to its text.
PROMPT_INPUTS = ("positive", "rows.")


def load_workflow(folder: Path, name: str) -> dict:
    """The API graph `name` (a file stem) of a folder.

    Raises:
        SetupError: no such file; the message lists what there is.
    """
    file = folder / f"{name}.json"
    if Path(name).name != name or not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise SetupError(f"--workflow is {name}, which is not in {folder}: choose one of {known}.")
    return json.loads(file.read_text(encoding="utf-8"))


def workflow_variant(name: str) -> str:
    """The variant a workflow's name speaks of; distilled when it names none."""
    return next((variant for variant in VARIANTS if variant in name.lower().split("_")), DEFAULT.name)


def chunks_for(seconds: float) -> int:
    """Chunks that hold at least `seconds` at 24 frames per second and 33 frames per chunk.

    Raises:
        SetupError: `seconds` is not a positive number.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise SetupError(f"--seconds is {seconds:g}: give a length above 0.")
    # A tolerance: 1.375 s is exactly one chunk and must not become two through rounding.
    return max(1, math.ceil(seconds * FPS / CHUNK_FRAMES - 1e-9))


def fill_workflow(
    graph: dict,
    model: str,
    prompt: str | None = None,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> dict:
    """A copy of `graph` with the model folder set, and the prompt, length and size (width, height) where given.

    Raises:
        SetupError: the graph has no place for one of them.
    """
    filled = copy.deepcopy(graph)
    loaders = [node for node in filled.values() if node["class_type"] in MODEL_INPUTS]
    if not loaders:
        raise SetupError(f"The workflow has none of {', '.join(MODEL_INPUTS)}: no model can be set in it.")
    for node in loaders:
        node["inputs"][MODEL_INPUTS[node["class_type"]]] = model
    if size is not None:
        for node in filled.values():
            if {"width", "height"} <= node["inputs"].keys():
                node["inputs"].update(width=size[0], height=size[1])
    if prompt is not None:
        positive_text(filled)["inputs"]["text"] = prompt
    if seconds is not None:
        for node in nodes_with(filled, LENGTHS, "--seconds"):
            node["inputs"].update({name: chunks_for(seconds) for name in LENGTHS if name in node["inputs"]})
    return filled


def positive_text(graph: dict) -> dict:
    """The node with the first chain's prompt: itself, or the CLIPTextEncode that its `positive` comes from."""
    node = nodes_with(graph, ("positive", "text"), "--prompt", (*CHAIN_NODES, "HeliosSampleChunk"))[0]
    if "text" in node["inputs"]:
        return node
    for _ in graph:
        inputs = node["inputs"]
        links = [value for name, value in inputs.items() if name.startswith(PROMPT_INPUTS) and is_link(value)]
        if not links:
            break
        node = graph[links[0][0]]
        if node["class_type"] == "CLIPTextEncode":
            return node
    raise SetupError("The workflow's positive input comes from no CLIPTextEncode: --prompt has no place.")


def nodes_with(graph: dict, names: tuple[str, ...], option: str, kinds: tuple[str, ...] = CHAIN_NODES) -> list[dict]:
    """The nodes of these kinds that have any of the inputs."""
    found = [node for node in graph.values() if node["class_type"] in kinds and node["inputs"].keys() & {*names}]
    if not found:
        wanted = " or ".join(kinds)
        raise SetupError(f"The workflow has no {wanted} with {' or '.join(names)}: {option} has no place.")
    return found


def is_link(value: object) -> bool:
    """Whether an API input is a connection: [node id, output index]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
