"""GGUF files: ours read by the gguf package, the package's read by us, and what is refused."""

import json
import struct

import gguf
import numpy as np
import pytest
import torch

from helios_core.checkpoint import load_transformer, open_transformer, to_diffusers
from helios_core.checkpoint.gguf import any_header
from helios_core.checkpoint.packed import FORMS
from helios_core.checkpoint.streaming import stream_transformer
from helios_core.commands.convert import convert
from helios_core.commands.embedded import embedded
from helios_core.errors import HeliosError

SMALL = embedded("distilled").folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {name: convert(SMALL, folder / f"{name}.gguf", name, show_progress=False) for name in ("q8_0", "q4_0")}


def written(path, state, types=None, arch="wan", names=dict, metadata=None):
    """A file as other tools write it: ``types`` by name, all else float32."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (metadata or {"helios.variant": "distilled", "helios.config": config()}).items():
        writer.add_string(key, value)
    for key, value in names(state).items():
        kind = (types or {}).get(key, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(key, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config():
    return json.dumps(open_transformer(SMALL).config.to_dict())


@pytest.fixture(scope="module")
def state():
    return {key: value.float() for key, value in load_transformer(open_transformer(SMALL)).state_dict().items()}


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_the_package_reads_what_convert_writes(files, state, name):
    reader = gguf.GGUFReader(files[name])
    assert reader.get_field("general.architecture").contents() == "helios"
    assert reader.get_field("helios.variant").contents() == "distilled"
    model, packed = load_transformer(open_transformer(files[name])), []
    assert {tensor.name for tensor in reader.tensors} == state.keys()
    for tensor in reader.tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(model.get_parameter(tensor.name).numpy().ravel(), theirs.ravel()), tensor.name
        if tensor.tensor_type.name.lower() == name:
            packed.append(tensor.name)
        shape = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
        found = tuple(reversed(tensor.shape.tolist())) if shape is None else tuple(shape.contents())
        assert found == state[tensor.name].shape and len(tensor.shape) <= 4
    layers = [f"{a}.{p}" for a in ("self_attn", "cross_attn") for p in "qkvo"] + ["ffn.0", "ffn.2"]
    assert set(packed) == {f"blocks.{i}.{layer}.weight" for i in range(6) for layer in layers}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_we_read_what_other_tools_write(tmp_path, state, prefix):
    """Another tool's architecture, names and prefix, five dimensions as they are, and a float32 part packed."""
    kinds = {"blocks.0.attn1.to_q.weight": "Q5_0", "blocks.1.ffn.net.2.weight": "Q5_1",
             "condition_embedder.time_embedder.linear_1.weight": "Q8_0", "proj_out.weight": "BF16",
             "blocks.2.attn2.to_k.weight": "Q4_1", "patch_embedding.weight": "F16"}  # fmt: skip
    kinds = {prefix + name: getattr(gguf.GGMLQuantizationType, kind) for name, kind in kinds.items()}
    file = written(
        tmp_path / "theirs.gguf", state, kinds, names=lambda s: {prefix + k: v for k, v in to_diffusers(s).items()}
    )
    found = load_transformer(open_transformer(file)).state_dict()
    for key, value in to_diffusers(state).items():
        kind = kinds.get(prefix + key, gguf.GGMLQuantizationType.F32)
        theirs = gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), kind), kind)
        assert np.array_equal(to_diffusers(found)[key].numpy(), theirs.reshape(value.shape)), key


@pytest.mark.parametrize("offload", ["disk", "cpu"])
def test_streamed_blocks_are_the_loaded_ones(files, offload):
    source = open_transformer(files["q4_0"])
    loaded, streamed = load_transformer(source), stream_transformer(source, offload=offload)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 16, 9, 4, 4), (1, 512, 128), (1, 16, 2, 4, 4), (1, 16, 2, 4, 4), (1, 16, 16, 4, 4)]
    latents, text, *history = [torch.randn(shape, generator=generator) for shape in shapes]
    with torch.no_grad():
        results = [model(latents, torch.tensor([500.0]), text, *history) for model in (loaded, streamed)]
    streamed.stream.close()
    assert torch.equal(*results)


def test_gguf_converts_back(files, tmp_path):
    back = convert(files["q8_0"], tmp_path / "back.safetensors", "fp32", show_progress=False)
    first, second = (load_transformer(open_transformer(file)).state_dict() for file in (files["q8_0"], back))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out.safetensors", "q8_0", "transformer"), "does not end in .gguf"),
        (("out.gguf", "bf16", "transformer"), "does not end in .safetensors"),
        (("out.gguf", "q8_0", "text_encoder"), "is not for the text encoder"),
        (("out.gguf", "q4_0", "vae"), "is not for the VAE"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, arguments, message):
    name, *rest = arguments
    with pytest.raises(HeliosError, match=message):
        convert(SMALL, tmp_path / name, *rest, show_progress=False)
    assert not list(tmp_path.iterdir())


def test_types_that_are_not_read_are_named(tmp_path, state):
    file = tmp_path / "k.gguf"
    writer = gguf.GGUFWriter(file, "wan")
    writer.add_tensor_info("blocks.0.ffn.0.weight", (4, 144), np.dtype(np.uint8), 4 * 144,
                           gguf.GGMLQuantizationType.Q4_K)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(HeliosError, match=r"as Q4_K; Q8_0, Q5_1, Q5_0, Q4_1, Q4_0 and plain numbers are read"):
        open_transformer(file, "base")


def test_another_model_is_told_apart(tmp_path):
    file = written(tmp_path / "wan.gguf", {"head.head.weight": torch.zeros(4, 32), "head.modulation": torch.zeros(4)})
    with pytest.raises(HeliosError, match=r"is a Wan 2\.1 model"):
        open_transformer(file)
    wrong = written(tmp_path / "small.gguf", {"blocks.0.ffn.0.weight": torch.zeros(4, 32)},
                    {"blocks.0.ffn.0.weight": gguf.GGMLQuantizationType.Q8_0})  # fmt: skip
    with pytest.raises(HeliosError, match=r"1 misshaped \(blocks.0.ffn.0.weight"):
        load_transformer(open_transformer(wrong))


@pytest.mark.parametrize("offset", [4, 8, 16])
def test_huge_counts_end_at_once(files, tmp_path, offset):
    """The package's own reader follows such a count until the machine is stopped."""
    content = bytearray(files["q8_0"].read_bytes())
    content[offset : offset + 8] = struct.pack("<Q", 1 << 60)
    (tmp_path / "huge.gguf").write_bytes(content)
    with pytest.raises(HeliosError, match=r"huge\.gguf"):
        any_header(tmp_path / "huge.gguf")


def test_every_form_has_its_own_type():
    assert len({form.number for form in FORMS.values()}) == len(FORMS)
