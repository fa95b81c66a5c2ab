"""Inputs that once got through, each by name: random examples may not draw them."""

import json

import pytest
import torch
from helios_fuzz_oracles import library_reads, outcome
from helios_fuzz_strategies import DEEP, LONG_DIGITS, joined, split
from safetensors.torch import load, load_file, save

from helios_core.checkpoint import load_transformer, open_transformer
from helios_core.checkpoint.folder import weight_files
from helios_core.checkpoint.lora import read_lora
from helios_core.checkpoint.mapped import map_file
from helios_core.checkpoint.streaming import stream_transformer
from helios_core.checkpoint.text import load_text_encoder
from helios_core.checkpoint.vae import load_vae
from helios_core.commands.tiny import TRANSFORMER_CONFIG
from helios_core.errors import HeliosError
from helios_core.pipeline import HeliosPipeline
from helios_core.samplers.solvers import check_solver
from helios_core.take.chunk import Chunk
from helios_core.take.fingerprint import fingerprint
from helios_core.take.history import History
from helios_core.take.history_file import load_history, save_history
from helios_core.take.store import ChunkStore

DEEP_OBJECT = '{"a":' * DEEP + "1" + "}" * DEEP
KEY, PREVIOUS = "a" * 40, "b" * 40


def refused(load, *names: str, words: str = "") -> None:
    """In one sentence that names the input, and says the words."""
    with pytest.raises(HeliosError) as told:
        load()
    assert words in str(told.value)
    assert outcome(load, *names) is None


# -- safetensors headers --------------------------------------------------------------------------------

ENTRIES = {
    "before the data": {"data_offsets": [-24, 0]},
    "over another": {"data_offsets": [8, 32]},
    "backwards": {"data_offsets": [24, 0]},
    "negative side": {"shape": [-2, -3]},
    "fraction": {"shape": [2.0, 3]},
    "bool": {"shape": [True, 6]},
    "null": {"shape": None},
    "null side": {"shape": [None, 6]},
    "huge beside none": {"shape": [0, 2**62], "data_offsets": [0, 0]},
    "huge": {"shape": [2**62, 3]},
    "fourfold bytes": {"dtype": "U8"},
}
HEADERS = {
    "no float64": lambda text: text.replace('"dtype"', f'"x": 1{"0" * 400}, "dtype"', 1),
    "deep": lambda text: text.replace("[", "[" * DEEP, 1),
    "digits": lambda text: text.replace("24", LONG_DIGITS, 1),
    "infinity": lambda text: text.replace("24", "1e999", 1),
    "twice": lambda text: text[:-1] + "," + text[1:],
}


@pytest.fixture
def crafted(tmp_path):
    """`crafted(data)`: a file of that content."""

    def write(data, name="crafted.safetensors"):
        file = tmp_path / name
        file.write_bytes(data)
        return file

    return write


@pytest.mark.parametrize("lie", ENTRIES.values(), ids=ENTRIES)
def test_an_entry_that_lies(crafted, lie):
    header, data = split(save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}))
    header["a"] |= lie
    file = crafted(joined(json.dumps(header).encode(), data))
    assert library_reads(file.read_bytes()) is None
    refused(lambda: map_file(file), file.name)


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_none(crafted, change):
    header, data = split(save({"a": torch.arange(6.0)}))
    text = json.dumps(header)
    assert change(text) != text
    file = crafted(joined(change(text).encode(), data))
    # Of two equal keys readers take one or the other.
    assert library_reads(file.read_bytes()) is None or change is HEADERS["twice"]
    refused(lambda: map_file(file), file.name)


# -- weights ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tiny_folder):
    """The tensors of each part of helios-tiny, and the name of the first matrix of each."""
    found = {}
    for part in ("transformer", "vae", "text_encoder"):
        tensors = {}
        for file in weight_files(tiny_folder("distilled") / part, *(["model.safetensors"] * (part == "text_encoder"))):
            tensors |= load_file(file)
        found[part] = tensors, next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    return found


LOADERS = {
    "transformer": (
        lambda file: load_transformer(open_transformer(file)),
        lambda file: stream_transformer(open_transformer(file)),
    ),
    "vae": (load_vae,),
}
WHOLE_NUMBERS = {
    "fourfold bytes": lambda tensor: tensor.float().contiguous().view(torch.uint8),
    "bytes": lambda tensor: tensor.to(torch.uint8),
    "I32": lambda tensor: tensor.to(torch.int32),
    "bool": lambda tensor: tensor.to(torch.bool),
}


@pytest.mark.parametrize("change", WHOLE_NUMBERS.values(), ids=WHOLE_NUMBERS)
@pytest.mark.parametrize("part", LOADERS)
def test_weights_of_whole_numbers(crafted, parts, part, change):
    """No format is named that would make numbers of them."""
    tensors, name = parts[part]
    metadata = {"helios.variant": "distilled", "helios.config": json.dumps(TRANSFORMER_CONFIG)}
    file = crafted(save(tensors | {name: change(tensors[name])}, metadata))
    for loader in LOADERS[part]:
        refused(lambda loader=loader: loader(file), file.name, words="whole-number")


@pytest.mark.parametrize("change", WHOLE_NUMBERS.values(), ids=WHOLE_NUMBERS)
def test_text_encoder_of_whole_numbers(damaged_folder, parts, change):
    tensors, name = parts["text_encoder"]
    folder = damaged_folder("text_encoder/model.safetensors", save(tensors | {name: change(tensors[name])}))
    refused(lambda: load_text_encoder(folder), "text_encoder", words="whole-number")


LORA = {"blocks.0.self_attn.q.weight": (48, 48), "blocks.0.self_attn.q.bias": (48,)}
Q = "blocks.0.self_attn.q"
PAIR = {f"{Q}.lora_down.weight": torch.ones(4, 48), f"{Q}.lora_up.weight": torch.ones(48, 4)}
LORAS = {
    "scalar": {f"{Q}.lora_up.weight": torch.ones(())},
    "vector": {f"{Q}.lora_down.weight": torch.ones(48)},
    "I32": {f"{Q}.lora_up.weight": torch.ones(48, 4, dtype=torch.int32)},
    "I32 difference": {f"{Q}.diff_b": torch.ones(48, dtype=torch.int32)},
    "no alpha": {f"{Q}.alpha": torch.ones(0)},
    "three alphas": {f"{Q}.alpha": torch.ones(3)},
    "I32 scale": {f"{Q}.dora_scale": torch.ones(48, 1, dtype=torch.int32)},
    "alpha NaN": {f"{Q}.alpha": torch.tensor(float("nan"))},
}


@pytest.mark.parametrize("tensors", LORAS.values(), ids=LORAS)
def test_a_lora_that_is_none(crafted, tensors):
    file = crafted(save(PAIR | tensors))
    refused(lambda: read_lora(file, LORA), file.name)


def test_a_whole_alpha_is_one(crafted):
    """Trainers write it as an integer too."""
    lora = read_lora(crafted(save(PAIR | {f"{Q}.alpha": torch.tensor(8)})), LORA)
    assert lora.adapters[f"{Q}.weight"][0]["alpha"] == 8


@pytest.mark.parametrize("text", [DEEP_OBJECT, LONG_DIGITS, f'{{"lora_alpha": {LONG_DIGITS}}}', "[]", "null"],
                         ids=["deep", "digits", "alpha", "list", "null"])  # fmt: skip
def test_what_a_lora_states(crafted, text):
    file = crafted(save(PAIR, {"lora_adapter_metadata": text}))
    refused(lambda: read_lora(file, LORA), file.name)


# -- configurations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["metadata", "tensor"])
@pytest.mark.parametrize("text", [DEEP_OBJECT, LONG_DIGITS, "[]", "null", ""], ids=lambda text: text[:5] or "empty")
def test_what_a_single_file_states(crafted, parts, form, text):
    """In its metadata, or in the tensor that core's ModelSave writes."""
    tensors = dict(parts["transformer"][0])
    if form == "tensor":
        tensors["helios_info"] = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    metadata = {"helios.variant": "distilled", "helios.config": text} if form == "metadata" else None
    file = crafted(save(tensors, metadata))
    refused(lambda: open_transformer(file, "distilled"), file.name)


SETTINGS = {
    "num_layers": [10**7, -1, "2", None, [2], 1.5, {}],
    "eps": [-1, "x", float("nan"), None],
    "patch_size": [[1, 2], "x", 5, [0, 2, 2]],
    "attention_head_dim": [0, 10**9, "12"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SETTINGS.items() for value in values])
def test_a_configuration_of_wrong_values(damaged_folder, name, value):
    folder = damaged_folder("transformer/config.json", json.dumps(TRANSFORMER_CONFIG | {name: value}).encode())
    refused(lambda: open_transformer(folder), name)


@pytest.mark.parametrize("text", [DEEP_OBJECT, LONG_DIGITS, "[]", "5"], ids=["deep", "digits", "list", "number"])
@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json", "vae/config.json"])
def test_a_configuration_that_is_none(damaged_folder, name, text):
    folder = damaged_folder(name, text.encode())
    refused(lambda: HeliosPipeline.from_pretrained(folder), str(folder))


@pytest.mark.parametrize("weight_map", [5, None, [], {}, "x", {"a": 5}, {"a": None}, {"a": ""}], ids=str)
def test_an_index_without_a_map(damaged_folder, weight_map):
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    folder = damaged_folder(index, json.dumps({"weight_map": weight_map}).encode())
    refused(lambda: load_transformer(open_transformer(folder)), str(folder))


# -- histories -------------------------------------------------------------------------------------------


def begun(seed=3):
    generator = torch.Generator().manual_seed(seed)
    empty = History.empty(64, 64)
    return empty.after(torch.randn(empty.chunk_shape, generator=generator), generator, seed)


def with_first(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


STATES = {
    "version": ["abc", "", "1.0", "9" * 21], "chunk": ["abc", "", "-5", str(2**25 + 1)],
    "seed": ["abc", "-1", str(2**64), str(2**70)], "skip_first_chunk": ["abc", "1"],
}  # fmt: skip
TENSORS = {
    "NaN latents": {"latents": lambda t: with_first(t, float("nan"))},
    "infinite latents": {"latents": lambda t: with_first(t, float("inf"))},
    "NaN anchor": {"anchor": lambda t: with_first(t, float("nan"))},
    "bool latents": {"latents": lambda t: t.bool()},
    "I32 latents": {"latents": lambda t: t.int()},
    "half latents": {"latents": lambda t: t.half()},
    "batch 0": {"latents": lambda t: t[:0], "anchor": lambda t: t[:0]},
    "few frames": {"latents": lambda t: t[:, :, :3].contiguous()},
    "another anchor": {"anchor": lambda t: t[..., :4].contiguous()},
    "no anchor": {"anchor": None},
    "no random state": {"random_state": None},
    "short random state": {"random_state": lambda t: t[:9].clone()},
    "float random state": {"random_state": lambda t: t.float()},
    "another tensor": {"unknown": lambda t: torch.ones(1)},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    file = tmp_path_factory.mktemp("history") / "whole.safetensors"
    save_history(begun(), file)
    return file.read_bytes()


def unsigned(saved):
    """Tensors, and metadata without the checksum, which older files have none of."""
    metadata = split(saved)[0]["__metadata__"]
    del metadata["checksum"]
    return load(saved), metadata


def test_a_history_without_a_checksum_loads(crafted, saved):
    tensors, metadata = unsigned(saved)
    assert load_history(crafted(save(tensors, metadata))).chunk == 1


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in STATES.items() for value in values])
def test_a_history_that_states_what_none_does(crafted, saved, name, value):
    tensors, metadata = unsigned(saved)
    file = crafted(save(tensors, metadata | {name: value}))
    refused(lambda: load_history(file), file.name)


@pytest.mark.parametrize("changes", TENSORS.values(), ids=TENSORS)
def test_a_history_of_other_tensors(crafted, saved, changes):
    tensors, metadata = unsigned(saved)
    for name, change in changes.items():
        before = tensors.pop(name, None)
        if change is not None:
            tensors[name] = change(before)
    file = crafted(save(tensors, metadata))
    refused(lambda: load_history(file), file.name)


@pytest.mark.parametrize("bit", [0, 22, 31])
def test_a_flipped_bit_of_a_history(crafted, saved, bit):
    """Of the last number of its latents: a little, half, or the sign."""
    header, _ = split(saved)
    at = len(saved) - len(split(saved)[1]) + header["latents"]["data_offsets"][1] - 4 + bit // 8
    file = crafted(saved[:at] + bytes([saved[at] ^ 1 << bit % 8]) + saved[at + 1 :])
    refused(lambda: load_history(file), file.name, words="its checksum differs")


# -- the store -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    store.put_chunk(KEY, PREVIOUS, Chunk(0, torch.ones(begun().chunk_shape), begun()))
    return store


@pytest.mark.parametrize("missing", ["chunk", "history"])
def test_a_forged_chunk_without_a_part(store, missing, caplog):
    """Its checksum is right."""
    data = store.chunk_file(KEY).read_bytes()
    metadata, tensors = split(data)[0]["__metadata__"], load(data)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(missing)}
    assert len(kept) < len(tensors)
    metadata["checksum"] = fingerprint(metadata["values"], kept)
    store.chunk_file(KEY).write_bytes(save(kept, metadata))
    assert store.get_chunk(KEY) is None and not store.chunk_file(KEY).exists()
    assert "is removed and made again" in caplog.text


def test_a_folder_where_a_chunk_lies_is_no_full_disk(store):
    file = store.chunk_file(KEY)
    file.unlink()
    (file / "occupied").mkdir(parents=True)
    with pytest.raises(HeliosError, match="check what lies there") as told:
        store.put_chunk(KEY, PREVIOUS, Chunk(0, torch.ones(begun().chunk_shape), begun()))
    assert "free space" not in str(told.value)


# -- what messages quote ---------------------------------------------------------------------------------


def test_a_long_solver_is_quoted_in_part():
    with pytest.raises(HeliosError, match="solver='xxx") as told:
        check_solver("x" * 100_000)
    assert len(str(told.value)) < 200
