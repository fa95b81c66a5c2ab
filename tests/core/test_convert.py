"""The converter: what it writes, against safetensors' own reader and the source; and how little memory it takes."""

import json
import re
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helios_core.checkpoint import from_diffusers, load_transformer, open_transformer
from helios_core.checkpoint.vae import load_vae
from helios_core.commands.conversion_plan import SLICE
from helios_core.commands.convert import convert
from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer

SMALL = {"num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 32, "freq_dim": 32, "ffn_dim": 96,
         "rope_dim": (8, 8, 8)}  # fmt: skip
FLOAT32 = ("time_embedding", "modulation", "norm3")


def read(file):
    with safe_open(file, "pt") as reader:
        return {key: reader.get_tensor(key) for key in reader.keys()}, reader.metadata()  # noqa: SIM118


def released_tensors(folder):
    state = {}
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        state |= load_file(file)
    return from_diffusers(state)


def quietly(*arguments, **options):
    return convert(*arguments, show_progress=False, **options)


@pytest.fixture
def released(tiny_folder):
    return tiny_folder("distilled")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_plain_types_are_exact_casts_with_float32_parts(released, tmp_path, dtype):
    tensors, metadata = read(quietly(released, tmp_path / "out.safetensors", dtype))
    source = released_tensors(released)
    assert tensors.keys() == source.keys()
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    for key, value in source.items():
        kept = any(part in key for part in FLOAT32)
        assert torch.equal(tensors[key], value if kept else value.to(wanted)), key
    assert (metadata["helios.variant"], metadata["helios.source"]) == ("distilled", released.name)
    config = json.loads(metadata["helios.config"])
    assert (config["num_layers"], config["attention_head_dim"]) == (2, 24)
    assert json.loads(metadata["helios.scheduler"])["_class_name"] == "HeliosDMDScheduler"


def test_fp8_is_cores_scaled_format(released, tmp_path):
    tensors, metadata = read(quietly(released, tmp_path / "out.safetensors", "fp8", keep_blocks=0))
    layers = json.loads(metadata["_quantization_metadata"])["layers"]
    assert set(layers) == {
        f"blocks.{block}.{layer}"
        for block in range(2)
        for layer in [f"{a}.{p}" for a in ("self_attn", "cross_attn") for p in "qkvo"] + ["ffn.0", "ffn.2"]
    }
    assert all(conf == {"format": "float8_e4m3fn"} for conf in layers.values())
    for key, value in released_tensors(released).items():
        if key.removesuffix(".weight") not in layers or key.endswith("bias"):
            assert tensors[key].dtype == (torch.float32 if any(p in key for p in FLOAT32) else torch.bfloat16), key
            continue
        scale = tensors[f"{key}_scale"]
        assert (scale.dtype, scale.shape, tensors[key].dtype) == (torch.float32, (), torch.float8_e4m3fn)
        assert torch.isclose(scale, value.abs().max() / 448)
        assert torch.equal(tensors[key].float(), (value / scale).to(torch.float8_e4m3fn).float())


def test_first_and_last_three_blocks_stay_bf16(tmp_path):
    config = SMALL | {"num_layers": 8}
    state = HeliosTransformer(**config).state_dict()
    metadata = {"helios.variant": "base", "helios.config": json.dumps(config)}
    save_file({key: torch.randn(value.shape) for key, value in state.items()}, tmp_path / "in.safetensors", metadata)
    tensors, _ = read(quietly(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "fp8"))
    narrow = {key.split(".")[1] for key, value in tensors.items() if value.dtype == torch.float8_e4m3fn}
    assert narrow == {"3", "4"}


def test_fp8_converts_back(released, tmp_path):
    """A quantised file is a source too: its scales are multiplied out."""
    quietly(released, tmp_path / "fp8.safetensors", "fp8", keep_blocks=0)
    back, metadata = read(quietly(tmp_path / "fp8.safetensors", tmp_path / "back.safetensors", "fp32"))
    assert "_quantization_metadata" not in metadata
    model = load_transformer(open_transformer(tmp_path / "fp8.safetensors"))
    assert all(torch.equal(back[key], value.float()) for key, value in model.state_dict().items())


def test_tensors_are_aligned_and_slices_join(tmp_path):
    """A tensor of several slices, and every offset a multiple of its type's size."""
    config = SMALL | {"num_layers": 1, "text_dim": SLICE // 20}
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in HeliosTransformer(**config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in shapes.items()}
    assert max(value.numel() for value in state.values()) > 2 * SLICE
    metadata = {"helios.variant": "mid", "helios.config": json.dumps(config)}
    save_file(state, tmp_path / "in.safetensors", metadata)
    out = quietly(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "fp8", keep_blocks=0)
    assert torch.equal(read(out)[0]["text_embedding.0.weight"], state["text_embedding.0.weight"])
    with out.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    sizes = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
    for key, info in header.items():
        if key != "__metadata__":
            assert (8 + length + info["data_offsets"][0]) % sizes[info["dtype"]] == 0, key


def test_vae_gets_native_names(released, tmp_path):
    out = quietly(released, tmp_path / "vae.safetensors", "fp32", "vae")
    tensors, _ = read(out)
    ours = load_vae(released / "vae").state_dict()
    assert tensors.keys() == ours.keys() and "decoder.middle.0.residual.0.gamma" in tensors
    assert all(torch.equal(tensors[key], value) for key, value in ours.items())


def test_text_encoder_shards_and_tokenizer_merge(released, tmp_path):
    """Two shards, as the release has; the tied embedding under both names is stored once."""
    folder = tmp_path / "model"
    shutil.copytree(released, folder)
    state = load_file(folder / "text_encoder" / "model.safetensors")
    (folder / "text_encoder" / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, part in shards.items():
        content = {key: state[key] for key in part}
        if "shared.weight" in part:
            content["encoder.embed_tokens.weight"] = state["shared.weight"].clone()
        save_file(content, folder / "text_encoder" / shard)
    index = {"weight_map": {key: shard for shard, part in shards.items() for key in part}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors, _ = read(quietly(folder, tmp_path / "umt5.safetensors", "bf16", "text_encoder"))
    spiece = tensors.pop("spiece_model")
    assert spiece.numpy().tobytes() == (released / "tokenizer" / "spiece.model").read_bytes()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], value.bfloat16()) for key, value in state.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype='int4'"),
        ({"part": "scheduler"}, "part='scheduler' is unknown"),
        ({"part": "vae", "dtype": "fp8"}, "is not for the VAE"),
        ({"variant": "base"}, "contradicts .* which is Helios distilled"),
    ],
)
def test_bad_options_are_named(released, tmp_path, options, message):
    with pytest.raises(HeliosError, match=message):
        quietly(released, tmp_path / "out.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_bad_files_are_named_and_leave_nothing_behind(released, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    with pytest.raises(HeliosError, match=r"does not end in \.safetensors"):
        quietly(released, tmp_path / "out.bin")
    damaged = tmp_path / "damaged"
    shutil.copytree(released, damaged)
    shard = damaged / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    state = load_file(shard)
    key = next(key for key in state if key.endswith("to_q.weight"))
    for number, dtype, reason in (
        ("nan", "fp8", "is damaged"),
        ("inf", "bf16", "is damaged"),
        ("1e6", "fp16", "use bf16"),
    ):
        value = float(number)
        save_file(state | {key: torch.full_like(state[key], value)}, shard)
        with pytest.raises(HeliosError, match=reason):
            quietly(damaged, out, dtype, keep_blocks=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(HeliosError, match=r"0\.0 GB free"):
        quietly(released, out)
    monkeypatch.undo()
    assert {entry.name for entry in tmp_path.iterdir()} == {"damaged"}
    quietly(released, out)
    with pytest.raises(HeliosError, match="exists already"):
        quietly(released, out)


@pytest.mark.parametrize(("form", "dtype"), [("int8_tensorwise", torch.int8), ("nvfp4", torch.uint8)])
def test_what_only_comfyui_multiplies_out_is_told_as_such(released, tmp_path, form, dtype):
    file = quietly(released, tmp_path / "plain.safetensors", "bf16")
    tensors, metadata = read(file)
    layer = "blocks.0.self_attn.q"
    weight = tensors[f"{layer}.weight"]
    narrow = weight.to(dtype) if dtype == torch.int8 else weight[:, ::2].to(dtype)
    marker = torch.frombuffer(bytearray(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    tensors |= {f"{layer}.weight": narrow, f"{layer}.weight_scale": torch.ones(()), f"{layer}.comfy_quant": marker}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    with pytest.raises(HeliosError, match=f"quantised as '{form}', which runs in ComfyUI only"):
        quietly(file, tmp_path / "out.safetensors", "bf16")


def test_packed_weights_of_a_safetensors_file(released, tmp_path):
    """As core's Model Save writes a GGUF model: bytes, and markers that say how they are packed."""
    packed = quietly(released, tmp_path / "packed.gguf", "q5_0")
    source = open_transformer(packed)
    saved = {key: tensor.contiguous() for key, tensor in source.state_dict().items()}
    assert any(tensor.dtype == torch.uint8 and tensor.ndim == 2 for tensor in saved.values())
    save_file(saved, tmp_path / "packed.safetensors", read(quietly(released, tmp_path / "plain.safetensors"))[1])
    tensors, _ = read(quietly(tmp_path / "packed.safetensors", tmp_path / "one.safetensors", "fp32"))
    wanted, _ = read(quietly(packed, tmp_path / "two.safetensors", "fp32"))
    assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_of_whole_numbers_are_refused(released, tmp_path, part):
    folder = tmp_path / "changed"
    shutil.copytree(released, folder)
    file = next(path for path in sorted((folder / part).glob("*.safetensors")))
    state = load_file(file)
    key = next(key for key, tensor in state.items() if tensor.ndim > 1)
    save_file(state | {key: state[key].int()}, file)
    with pytest.raises(HeliosError, match=r"1 whole-number .*torch\.int32"):
        quietly(folder, tmp_path / "out.safetensors", "bf16", part)


def test_a_result_that_differs_is_noticed(released, tmp_path, monkeypatch):
    import helios_core.commands.convert as module

    honest = module.write

    def faulty(plan, target, bar):
        honest(plan, target, bar)
        with target.open("r+b") as file:
            file.seek(-3, 2)
            file.write(b"\x42\x42\x42")

    monkeypatch.setattr(module, "write", faulty)
    with pytest.raises(HeliosError, match="differs from its source at"):
        quietly(released, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def peak_kilobytes(arguments):
    """Peak resident memory of the command line, as GNU time reports it."""
    if shutil.which("/usr/bin/time") is None:
        pytest.skip("needs GNU time (Debian package time)")
    done = subprocess.run(["/usr/bin/time", "-v", sys.executable, "-m", "helios_core", *map(str, arguments)],
                          cwd=arguments[1].parent, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr
    return int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)[1])


@pytest.mark.parametrize(
    ("dtype", "layers"), [("bf16", 1), *(pytest.param(dtype, 7, marks=pytest.mark.slow) for dtype in ("bf16", "fp8"))]
)
def test_peak_memory_is_bounded(tmp_path, dtype, layers):
    """Released width in float32, of zeros that take no disk: under twice the largest tensor + 500 MB.

    Of seven blocks, fp8 quantises the one between the three that are kept at either end.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in HeliosTransformer(num_layers=layers).state_dict().items()}
    header, position = {"__metadata__": {"helios.variant": "distilled"}}, 0
    for key, shape in shapes.items():
        end = position + 4 * shape.numel()
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    source = tmp_path / "in.safetensors"
    content = json.dumps(header).encode()
    with source.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + position)
    largest = 4 * max(shape.numel() for shape in shapes.values())
    target = tmp_path / "out.safetensors"
    peak = 1024 * peak_kilobytes(["convert", source, target, "--dtype", dtype])
    print(
        f"{dtype}: {source.stat().st_size / 1e9:.1f} GB in, peak {peak / 1e6:.0f} MB, "
        f"largest tensor {largest / 1e6:.0f} MB"
    )
    assert peak < 2 * largest + 500e6
    target.unlink()
