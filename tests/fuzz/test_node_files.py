"""Crafted files behind the nodes of a real server: models, LoRAs, histories and clips."""

from __future__ import annotations

import json

import pytest
import torch
from helios_comfy_graphs import film, node
from helios_fuzz_graphs import graphs
from helios_fuzz_profiles import tries
from helios_fuzz_served import attempt
from helios_fuzz_strategies import damaged, safetensors_files, split
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save

from helios_core.commands.tiny import TRANSFORMER_CONFIG
from helios_core.take.history import History
from helios_core.take.history_file import save_history

NAME = "crafted.safetensors"
# Kind of file -> folder below the base directory.
FOLDERS = {"model": "models/diffusion_models", "vae": "models/vae", "clip": "models/text_encoders",
           "lora": "models/loras", "history": "input", "video": "input"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(abused, tiny_folder, tmp_path_factory):
    """A good file of every kind, as bytes."""
    parts = {}
    for part in ("transformer", "vae", "text_encoder"):
        parts[part] = {}
        for file in sorted((tiny_folder("distilled") / part).glob("*.safetensors")):
            parts[part] |= load_file(file)
    metadata = {"helios.variant": "distilled", "helios.config": json.dumps(TRANSFORMER_CONFIG)}
    spiece = (tiny_folder("distilled") / "tokenizer" / "spiece.model").read_bytes()
    parts["text_encoder"]["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    key = "diffusion_model.blocks.0.self_attn.q"
    lora = {f"{key}.lora_down.weight": torch.ones(2, 48), f"{key}.lora_up.weight": torch.ones(48, 2)}
    saved = tmp_path_factory.mktemp("history") / NAME
    begun, generator = History.empty(64, 64), torch.Generator().manual_seed(3)
    save_history(begun.after(torch.zeros(begun.chunk_shape), generator, 3), saved)
    video = (abused.log_file.parent / "input" / "example.mp4").read_bytes()
    return {"model": save(parts["transformer"], metadata), "vae": save(parts["vae"]), "lora": save(lora),
            "clip": save(parts["text_encoder"]), "history": saved.read_bytes(), "video": video}  # fmt: skip


def loading(kind: str, name: str) -> dict:
    """A graph that uses a file of a kind, and little else."""
    if kind == "video":
        graph = graphs()["helios_distilled_v2v"]
        load, begin = (next(key for key, item in graph.items() if item["class_type"] == wanted)
                       for wanted in ("LoadVideo", "HeliosVideoHistory"))  # fmt: skip
        graph[load]["inputs"]["file"] = name
        kept = {key: item for key, item in graph.items() if item["class_type"] in ("HeliosLoadModel", "LoadVideo")}
        save_it = node("HeliosSaveHistory", history=[begin, 0], filename_prefix="fuzz/clip")
        return {**kept, begin: graph[begin], "keep": save_it}
    graph = film("loading", chunks=1)
    if kind == "lora":
        graph["lora"] = node("HeliosLoraLoader", model=["model", 0], lora_name=name, strength=1.0)
        graph["render"]["inputs"]["model"] = ["lora", 0]
    elif kind == "history":
        graph["history"] = node("HeliosLoadHistory", file=name)
    else:
        graph[kind]["inputs"][{"clip": "text_encoder"}.get(kind, kind)] = name
    return graph


@pytest.mark.parametrize("kind", sorted(FOLDERS))
def test_whole_files_load(abused, whole, kind):
    assert attempt(abused, loading(kind, plant(abused, kind, whole[kind]))) == "ran"


def test_a_tokenizer_is_bytes(abused, whole):
    """NumPy, with which core reads it, has no 8-bit floats."""
    tensors = load(whole["clip"])
    tensors["spiece_model"] = tensors["spiece_model"].view(torch.float8_e4m3fn)
    assert attempt(abused, loading("clip", plant(abused, "clip", save(tensors)))) == "one sentence"


def test_a_text_encoder_of_a_whole_model(abused, whole):
    """Its decoder is ignored, as core ignores it; what is missing of the encoder is told."""
    tensors = load(whole["clip"]) | {"decoder.final_layer_norm.weight": torch.ones(32)}
    assert attempt(abused, loading("clip", plant(abused, "clip", save(tensors)))) == "ran"
    del tensors["encoder.final_layer_norm.weight"]
    assert attempt(abused, loading("clip", plant(abused, "clip", save(tensors)))) == "one sentence"


@pytest.mark.parametrize("kind", ["model", "vae", "clip", "lora"])
def test_weights_are_no_whole_numbers(abused, whole, kind):
    """Core would make floating-point of them without a word."""
    tensors = load(whole[kind])
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1 and tensor.dtype == torch.float32)
    metadata = split(whole[kind])[0].get("__metadata__")
    for changed in (tensors[name].to(torch.int32), tensors[name].contiguous().view(torch.uint8)):
        data = save(tensors | {name: changed}, metadata)
        assert attempt(abused, loading(kind, plant(abused, kind, data))) == "one sentence"


@tries(25)
@given(changed=st.data(), kind=st.sampled_from(sorted(FOLDERS)))
def test_crafted_files(abused, whole, changed, kind):
    good = whole[kind]
    strategy = damaged(good) if kind == "video" else safetensors_files(good)
    attempt(abused, loading(kind, plant(abused, kind, changed.draw(strategy))))


def plant(server, kind: str, data: bytes) -> str:
    """Writes a file under a name that core has not cached anything for."""
    folder = server.log_file.parent / FOLDERS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("crafted-*"):
        old.unlink()
    plant.count = getattr(plant, "count", 0) + 1
    name = f"crafted-{plant.count}{'.mp4' if kind == 'video' else '.safetensors'}"
    (folder / name).write_bytes(data)
    return name
