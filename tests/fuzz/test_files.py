"""Crafted model files at every loader: refused in one sentence, or read as an independent reader reads them."""

import contextlib
import json
import os
import pickle
import re
import zipfile

import pytest
import torch
from helios_fuzz_oracles import bounded, check_same, check_sentence, finite, library_reads, outcome
from helios_fuzz_profiles import tries
from helios_fuzz_strategies import (
    OTHER_FORMATS,
    changed_json,
    damaged,
    dumps,
    joined,
    json_files,
    safetensors_files,
    texts,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from helios_core.checkpoint import load_transformer, open_transformer
from helios_core.checkpoint.folder import weight_files
from helios_core.checkpoint.lora import read_lora
from helios_core.checkpoint.mapped import map_file
from helios_core.checkpoint.text import load_text_encoder, load_tokenizer
from helios_core.checkpoint.umt5 import umt5_config
from helios_core.checkpoint.vae import load_vae
from helios_core.commands.convert import convert
from helios_core.commands.tiny import TRANSFORMER_CONFIG
from helios_core.errors import HeliosError
from helios_core.pipeline import HeliosPipeline

SMALL = save(
    {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4, dtype=torch.int64), "c": torch.ones(3).half(),
     "empty": torch.zeros(0, 2)}, {"format": "pt"}
)  # fmt: skip
LORA = {"blocks.0.self_attn.q.weight": (48, 48), "blocks.0.ffn.0.weight": (96, 48), "blocks.0.ffn.0.bias": (96,)}


def lora_tensors():
    q, ffn = "blocks.0.self_attn.q", "lora_unet_blocks_0_ffn_0"
    return {f"{q}.lora_A.weight": torch.ones(4, 48), f"{q}.lora_B.weight": torch.ones(48, 4), f"{q}.dora_scale":
            torch.ones(48, 1), f"{ffn}.lora_down.weight": torch.ones(2, 48), f"{ffn}.lora_up.weight": torch.ones(96, 2),
            f"{ffn}.alpha": torch.tensor(2.0), "blocks.0.ffn.0.diff_b": torch.ones(96)}  # fmt: skip


STATED = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8,
          "transformer.alpha_pattern": {"blocks.0.self_attn.q": 16}})}  # fmt: skip


@pytest.fixture(scope="module")
def single_file(tiny_folder):
    """A transformer as one file that says what it is, and its tensors."""
    tensors = {}
    for file in weight_files(tiny_folder("distilled") / "transformer"):
        tensors |= load_file(file)
    small = {name: tensor.half() for name, tensor in tensors.items()}
    metadata = {"helios.variant": "distilled", "helios.config": json.dumps(TRANSFORMER_CONFIG)}
    return save(small, metadata), save(small)


@tries(250)
@given(data=safetensors_files(SMALL))
def test_headers(tmp_path, data):
    file = tmp_path / "crafted.safetensors"
    file.write_bytes(data)
    found = outcome(lambda: map_file(file), file.name, size=len(data))
    if found is not None:
        check_same(found[0], library_reads(data))


@tries(60)
@given(changed=st.data())
def test_transformer_file(tmp_path, single_file, changed):
    whole = single_file[0]
    file = tmp_path / "crafted.safetensors"
    data = changed.draw(safetensors_files(whole))
    file.write_bytes(data)
    model = outcome(lambda: load_transformer(open_transformer(file)), file.name, size=len(data))
    if model is not None:
        runs(model)


def runs(model):
    """What was accepted computes something."""
    latents, text = torch.ones(1, 16, 9, 4, 4), torch.ones(1, 512, model.config.text_dim)
    history = (torch.ones(1, 16, frames, 4, 4) for frames in (2, 2, 16))
    with torch.no_grad(), bounded():
        velocity = model(latents, torch.tensor([500.0]), text, *history)
    assert velocity.shape == latents.shape


@tries(60)
@given(changed=st.data(), key=st.sampled_from(["helios.variant", "helios.config", "helios.scheduler", "format",
       "_quantization_metadata"]))  # fmt: skip
def test_transformer_metadata(tmp_path, single_file, changed, key):
    file = tmp_path / "crafted.safetensors"
    length = int.from_bytes(single_file[0][:8], "little")
    header = json.loads(single_file[0][8 : 8 + length])
    value = changed.draw(json_files(TRANSFORMER_CONFIG))
    header["__metadata__"][key] = value.decode("utf-8", "replace")
    data = joined(json.dumps(header).encode(), single_file[0][8 + length :])
    file.write_bytes(data)
    outcome(lambda: load_transformer(open_transformer(file)), file.name, "transformer", size=len(data))


@tries(60)
@given(changed=st.data(), kind=st.sampled_from(["transformer", "vae", "text_encoder"]))
def test_names(tmp_path, tiny_folder, changed, kind):
    """Files that say nothing of themselves but by their tensors' names and shapes."""
    tensors = {}
    for file in sorted((tiny_folder("distilled") / kind).glob("*.safetensors")):
        tensors |= load_file(file)
    for _ in range(changed.draw(st.integers(1, 3))):
        name = changed.draw(st.sampled_from(sorted(tensors)))
        number = changed.draw(
            st.sampled_from(["0", "9", "99", "9999", "9" * 12, "9" * 5000, "-1", "x", "", "٣", "1_0"])
        )
        other = re.sub(r"\.\d+\.", f".{number}.", name, count=1)
        other = changed.draw(st.one_of(st.just(other), st.just(other), texts.filter(lambda text: "\ud800" not in text)))
        shape = changed.draw(st.sampled_from([list(tensors[name].shape), [], [0], [0, 0], [1, 1, 1], [4]]))
        tensors[other] = torch.zeros(shape) if list(tensors[name].shape) != shape else tensors[name].clone()
    file = tmp_path / "crafted.safetensors"
    data = save(tensors)
    file.write_bytes(data)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    loaders = {"vae": lambda: load_vae(file), "transformer": lambda: load_transformer(open_transformer(file, "base")),
               "text_encoder": lambda: umt5_config(shapes, file)}  # fmt: skip
    outcome(loaders[kind], file.name, "transformer", size=len(data))


@tries(60)
@given(changed=st.data())
def test_info_tensor(tmp_path, single_file, changed):
    """What core's ModelSave carries the metadata in."""
    file = tmp_path / "crafted.safetensors"
    info = {"helios.variant": "distilled", "helios.config": json.dumps(TRANSFORMER_CONFIG)}
    content = changed.draw(json_files(info))
    assume(content)
    tensors = library_reads(single_file[1]) | {"helios_info": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
    data = save(tensors)
    file.write_bytes(data)
    outcome(lambda: load_transformer(open_transformer(file, "distilled")), file.name, "transformer", size=len(data))


CONFIGS = ("model_index.json", "transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json",
           "transformer/diffusion_pytorch_model.safetensors.index.json")  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@tries(50)
@given(changed=st.data())
def test_folder_configuration(damaged_folder, tiny_folder, name, changed):
    """What is accepted renders a chunk of numbers."""
    content = json.loads((tiny_folder("distilled") / name).read_text(encoding="utf-8"))
    data = changed.draw(json_files(content))
    folder = damaged_folder(name, data)
    part = name.split("/", maxsplit=1)[0]
    names = (str(folder), part, *(key for key in content if not key.startswith("_")))
    pipeline = outcome(lambda: HeliosPipeline.from_pretrained(folder), *names, size=5_000_000)
    if pipeline is None or name.startswith("vae"):
        return
    arguments = {"prompt_embeds": torch.ones(1, 512, 32), "height": 64, "width": 64, "num_frames": 33,
                 "output_type": "latent", "generator": torch.Generator().manual_seed(0)}  # fmt: skip
    steps = (
        {"num_inference_steps": 1} if pipeline.variant == "base" else {"pyramid_num_inference_steps_list": [1, 1, 1]}
    )
    result = outcome(lambda: pipeline(**arguments, **steps, guidance_scale=1.0))
    assert result is None or finite(result.latents)


@pytest.mark.parametrize("kind", ["outside", "link", "absolute", "device", "pipe", "folder", "itself"])
def test_index_points_elsewhere(damaged_folder, tmp_path, kind):
    """Shards outside the folder, and what is no file."""
    (tmp_path / "secret.safetensors").write_bytes(SMALL)
    name = {"outside": "../../secret.safetensors", "absolute": str(tmp_path / "secret.safetensors")}.get(kind, "shard")
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    folder = damaged_folder(index, json.dumps({"weight_map": {"a": name}}).encode())
    shard = folder / "transformer" / "shard"
    if kind == "link":
        shard.symlink_to(tmp_path / "absent")
    elif kind == "device":
        shard.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    elif kind == "itself":
        shard.symlink_to(shard)
    assert outcome(lambda: load_transformer(open_transformer(folder)), str(folder)) is None


@tries(60)
@given(changed=st.data(), whole=st.booleans())
def test_vae(damaged_folder, tiny_folder, tmp_path, changed, whole):
    name = "vae/diffusion_pytorch_model.safetensors"
    data = changed.draw(safetensors_files((tiny_folder("distilled") / name).read_bytes()))
    folder = damaged_folder(name, data)
    outcome(lambda: load_vae(folder / name if whole else folder), str(folder), size=len(data))


@tries(25)
@given(changed=st.data(), name=st.sampled_from(["text_encoder/config.json", "text_encoder/model.safetensors"]))
def test_text_encoder(damaged_folder, tiny_folder, changed, name):
    whole = (tiny_folder("distilled") / name).read_bytes()
    crafted = json_files(json.loads(whole)) if name.endswith(".json") else safetensors_files(whole)
    data = changed.draw(crafted)
    folder = damaged_folder(name, data)
    encoder = outcome(lambda: load_text_encoder(folder), "text_encoder", "config", size=len(data))
    if encoder is not None:
        rows = outcome(lambda: encoder.encode(["a boat"]), "text_encoder")
        assert rows is None or rows.shape[:2] == (1, 512)


@tries(60)
@given(changed=st.data(), name=st.sampled_from(["tokenizer.json", "spiece.model", "tokenizer_config.json"]))
def test_tokenizer(damaged_folder, tiny_folder, changed, name):
    whole = (tiny_folder("distilled") / "tokenizer" / name).read_bytes()
    crafted = json_files(json.loads(whole)) if name.endswith(".json") else damaged(whole)
    folder = damaged_folder(f"tokenizer/{name}", changed.draw(crafted))
    if name == "spiece.model":
        (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    tokenizer = outcome(lambda: load_tokenizer(folder), "tokenizer", size=len(whole))
    if tokenizer is not None:
        ids = outcome(lambda: tokenizer("a boat"), "tokenizer")
        assert ids is None or all(isinstance(number, int) for number in ids)


@tries(120)
@given(changed=st.data())
def test_lora(tmp_path, changed):
    file = tmp_path / "crafted.safetensors"
    data = changed.draw(safetensors_files(save(lora_tensors(), STATED)))
    file.write_bytes(data)
    lora = outcome(lambda: read_lora(file, LORA), file.name, size=len(data))
    if lora is not None:
        assert all(name in LORA for name in (*lora.adapters, *lora.differences, *lora.replacements))


@tries(80)
@given(changed=st.data())
def test_lora_shapes(tmp_path, changed):
    """Tensors of any shape and type under a LoRA's names."""
    file = tmp_path / "crafted.safetensors"
    tensors = lora_tensors()
    name = changed.draw(st.sampled_from(sorted(tensors)))
    shape = changed.draw(st.lists(st.sampled_from([0, 1, 2, 4, 48, 96]), max_size=5))
    assume(torch.Size(shape).numel() < 2**20)
    dtype = changed.draw(st.sampled_from([torch.float32, torch.int8, torch.bool, torch.float8_e4m3fn, torch.bfloat16]))
    tensors[name] = torch.full(shape, changed.draw(st.sampled_from([0.0, 1.0, float("nan")]))).to(dtype)
    stated = changed.draw(st.one_of(st.just(STATED), changed_json({"lora_adapter_metadata": {"lora_alpha": 1}})))
    metadata = {key: value if isinstance(value, str) else dumps(value).decode("utf-8", "replace")
                for key, value in stated.items()}  # fmt: skip
    data = save(tensors, metadata)
    file.write_bytes(data)
    lora = outcome(lambda: read_lora(file, LORA), file.name, size=len(data))
    for pairs in lora.adapters.values() if lora else ():
        for pair in pairs:
            assert pair["lora_up.weight"].flatten(1).shape[1] == pair["lora_down.weight"].shape[0]
            assert "alpha" not in pair or abs(pair["alpha"].item()) < float("inf")


class Opened:
    """A pickle that leaves a mark when anyone opens it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("form", ["plain", "zip", "torch", "old"])
def test_pickles_are_not_opened(tmp_path, damaged_folder, suffix, form):
    mark, file = tmp_path / "opened", tmp_path / f"weights{suffix}"
    if form == "plain":
        file.write_bytes(pickle.dumps({"state_dict": Opened(mark)}))
    elif form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Opened(mark)))
            archive.writestr("archive/version", "3\n")
    else:
        torch.save({"blocks.0.ffn.0.weight": Opened(mark)}, file, _use_new_zipfile_serialization=form == "torch")
    folder = damaged_folder("vae/diffusion_pytorch_model.safetensors", file.read_bytes())
    loaders = [lambda: read_lora(file, LORA), lambda: open_transformer(file, "base"), lambda: load_vae(file),
               lambda: load_vae(folder), lambda: map_file(file)]  # fmt: skip
    for load in loaders:
        with contextlib.suppress(HeliosError):
            load()
            raise AssertionError("accepted")
        assert outcome(load, file.name, str(folder)) is None
    assert not mark.exists()


@pytest.mark.parametrize("data", OTHER_FORMATS, ids=lambda data: repr(data[:12]))
def test_other_formats(tmp_path, data):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(data)
    for load in (lambda: open_transformer(file, "base"), lambda: load_vae(file), lambda: read_lora(file, LORA)):
        with pytest.raises(HeliosError) as refused:
            load()
        check_sentence(str(refused.value), file.name)


@pytest.fixture(scope="module")
def packed_file(single_file, tmp_path_factory):
    """The same transformer as GGUF."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "whole.safetensors").write_bytes(single_file[0])
    return convert(folder / "whole.safetensors", folder / "whole.gguf", "q8_0", show_progress=False).read_bytes()


@tries(150)
@given(changed=st.data())
def test_gguf_file(tmp_path, packed_file, changed):
    """Damage in the header mostly: what follows is numbers, of which any are allowed."""
    file = tmp_path / "crafted.gguf"
    header = packed_file[: any_header_size(packed_file)]
    whole = changed.draw(st.booleans())
    data = changed.draw(damaged(packed_file)) if whole else changed.draw(damaged(header)) + packed_file[len(header) :]
    file.write_bytes(data)
    model = outcome(lambda: load_transformer(open_transformer(file)), file.name, "transformer", size=len(data))
    if model is not None:
        runs(model)


@tries(150)
@given(at=st.integers(0, 10_000), value=st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]),
       width=st.sampled_from([4, 8]))  # fmt: skip
def test_gguf_numbers(tmp_path, packed_file, at, value, width):
    """Any count, length, type, side or offset as another number."""
    file = tmp_path / "crafted.gguf"
    at %= any_header_size(packed_file)
    data = packed_file[:at] + (value % 2 ** (8 * width)).to_bytes(width, "little") + packed_file[at + width :]
    file.write_bytes(data)
    model = outcome(lambda: load_transformer(open_transformer(file)), file.name, "transformer", size=len(data))
    if model is not None:
        runs(model)


def any_header_size(data):
    """Where the first tensor lies, at or behind the end of the header: ``general.architecture`` is in it."""
    return data.rindex(b".weight") + 64
