"""Every layout, prefix and type of transformer file loads to the same model; other files are refused by name."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_core.checkpoint import from_diffusers, load_transformer, open_transformer, to_diffusers
from helios_core.checkpoint.source import CONFIG_KEY, INFO_TENSOR, VARIANT_KEY, info_tensor
from helios_core.commands.convert import convert
from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer, TransformerConfig
from helios_core.pipeline import HeliosPipeline

REFERENCE = Path(__file__).with_name("released_transformer.json")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
FLOAT32 = ("time_embedding", "modulation", "norm3")
# ComfyUI PR 12765: embeddings as in Wan, blocks as in diffusers.
MIXED = {
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
}


def mixed_names(state, feed_forward):
    renamed = {}
    pairs = MIXED | ({"ffn.net.0.proj.": "ffn.0.", "ffn.net.2.": "ffn.2."} if feed_forward else {})
    for key, value in state.items():
        name = key
        for theirs, wan in pairs.items():
            name = name.replace(theirs, wan)
        renamed[name] = value
    return renamed


LAYOUTS = {
    "diffusers": lambda state: state,
    "pr-12765": lambda state: mixed_names(state, False),
    "pr-12765-ffn.0": lambda state: mixed_names(state, True),
    "ours": from_diffusers,
}


@pytest.fixture(scope="module")
def released(tiny_folder):
    """helios-tiny's tensors under diffusers' names, and the metadata that makes its width known."""
    folder = tiny_folder("distilled")
    state = {}
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        state |= load_file(file)
    config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    return folder, state, {VARIANT_KEY: "distilled", CONFIG_KEY: json.dumps(config)}


def velocity(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 16, 9, 8, 8), (1, 512, model.config.text_dim), *((1, 16, n, 8, 8) for n in (2, 2, 16))]
    latents, text, *history = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    with torch.no_grad():
        return model(latents, torch.tensor([500.0]), text, *history)


def quantised(state):
    """Scaled fp8 of the attention and feed-forward weights, written out by hand after QUANTIZATION.md."""
    out, layers = {}, {}
    for key, value in state.items():
        if "blocks." in key and key.endswith(".weight") and value.ndim == 2:
            scale = value.abs().max() / 448
            layer = key.removesuffix(".weight")
            out[key], out[f"{layer}.weight_scale"] = (value / scale).to(torch.float8_e4m3fn), scale
            layers[layer] = {"format": "float8_e4m3fn"}
        else:
            out[key] = value.bfloat16()
    return out, layers


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_prefix_and_type_give_the_same_velocity(released, tmp_path, layout, prefix, dtype):
    folder, state, metadata = released
    file = tmp_path / "model.safetensors"
    stored = {key: value.to(TYPES[dtype]) for key, value in state.items()}
    save_file({prefix + key: value for key, value in LAYOUTS[layout](stored).items()}, file, metadata)
    source = open_transformer(file)
    assert source.variant == "distilled"
    model = load_transformer(source, torch.float32)

    expected = load_transformer(open_transformer(folder), torch.float32)
    expected.load_state_dict(from_diffusers({key: value.float() for key, value in stored.items()}))
    assert torch.equal(velocity(model), velocity(expected))


@pytest.mark.parametrize("style", ["metadata", "tensors", "old"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scaled_fp8_is_multiplied_out(released, tmp_path, layout, prefix, style):
    folder, state, metadata = released
    stored, layers = quantised({prefix + key: value for key, value in LAYOUTS[layout](state).items()})
    metadata = dict(metadata)
    if style == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    elif style == "tensors":
        for layer, conf in layers.items():
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
    else:
        for layer in layers:
            stored[f"{layer}.scale_weight"] = stored.pop(f"{layer}.weight_scale")
        stored[f"{prefix}scaled_fp8"] = torch.zeros(1, dtype=torch.float8_e4m3fn)
    save_file(stored, tmp_path / "fp8.safetensors", metadata)
    model = load_transformer(open_transformer(tmp_path / "fp8.safetensors"))
    exact = load_transformer(open_transformer(folder))
    for key, weight in exact.state_dict().items():
        # Three mantissa bits round by up to 1/16, bf16 by 1/256.
        assert ((model.state_dict()[key] - weight).abs() <= weight.abs() / 15 + weight.abs().max() / 448 / 64).all(), (
            key
        )
    difference = velocity(model) - velocity(exact)
    assert difference.abs().mean() <= 0.05 * velocity(exact).abs().mean()


def test_weights_of_the_right_type_are_not_copied(released, tmp_path):
    """The tensors of a loaded model are the memory-mapped ones: private mappings of the file, not heap memory."""
    _, state, metadata = released
    ours = from_diffusers(state)
    file = tmp_path / "mapped.safetensors"
    save_file({k: v.float() if any(p in k for p in FLOAT32) else v.bfloat16() for k, v in ours.items()}, file, metadata)
    model = load_transformer(open_transformer(file), torch.bfloat16)
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if line.endswith(str(file))
    ]
    for name, parameter in model.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in ranges), name


def test_files_of_cores_model_save_know_their_variant(released, tmp_path):
    """Core writes tensors only; one of them carries what metadata would."""
    folder, state, _ = released
    config = open_transformer(folder).config
    saved = {f"model.diffusion_model.{key}": value for key, value in from_diffusers(state).items()}
    save_file(saved | {INFO_TENSOR: info_tensor("mid", config)}, tmp_path / "saved.safetensors")
    source = open_transformer(tmp_path / "saved.safetensors")
    assert (source.variant, source.config) == ("mid", config)
    assert torch.equal(velocity(load_transformer(source)), velocity(load_transformer(open_transformer(folder))))


def test_variant_is_never_guessed(released, tmp_path):
    _, state, metadata = released
    file = tmp_path / "silent.safetensors"
    save_file(state, file, {CONFIG_KEY: metadata[CONFIG_KEY]})
    with pytest.raises(HeliosError, match="set the input variant"):
        open_transformer(file)
    assert open_transformer(file, "mid").variant == "mid"
    with pytest.raises(HeliosError, match="variant='turbo' is unknown"):
        open_transformer(file, "turbo")
    save_file(state, file, metadata)
    with pytest.raises(HeliosError, match=r"contradicts .* which is Helios distilled"):
        open_transformer(file, "base")


def test_configuration_is_derived_at_the_released_width_only(released, tmp_path):
    _, state, _ = released
    save_file(state, tmp_path / "narrow.safetensors", {VARIANT_KEY: "base"})
    with pytest.raises(HeliosError, match=r"width 48 and no helios\.config"):
        open_transformer(tmp_path / "narrow.safetensors")
    config = TransformerConfig(num_layers=2)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in HeliosTransformer(**config.to_dict()).state_dict().items()}
    sparse_file(tmp_path / "wide.safetensors", to_diffusers(shapes), torch.bfloat16)
    assert open_transformer(tmp_path / "wide.safetensors", "base").config == config


def sparse_file(path, shapes, dtype):
    """A complete safetensors file of zeros that takes no space on disk."""
    header, position = {}, 0
    for key, shape in shapes.items():
        end = position + shape.numel() * dtype.itemsize
        header[key] = {"dtype": {torch.bfloat16: "BF16"}[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + position)


def test_full_configuration_has_the_released_names_and_shapes():
    """Both ways through the adapter, without allocating: 1,101 names, 14,312,427,584 numbers."""
    released = {}
    for pattern, shape in json.loads(REFERENCE.read_text(encoding="utf-8")).items():
        span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
        numbers = range(int(span[1]), int(span[2]) + 1) if span else [0]
        released |= {pattern.replace(span[0], str(n)) if span else pattern: tuple(shape) for n in numbers}
    with torch.device("meta"):
        ours = {key: tuple(value.shape) for key, value in HeliosTransformer().state_dict().items()}
    assert len(released) == 1101
    assert to_diffusers(ours) == released
    assert from_diffusers(released) == ours
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == 14_312_427_584


WAN = ["patch_embedding.weight", "blocks.0.self_attn.q.weight", "head.head.weight", "head.modulation"]
FOREIGN = {
    "a Wan 2.1 model": WAN,
    "a Wan 2.1 model ": ["condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight", "proj_out.weight"],
    "a Stable Diffusion checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x.weight"],
    "a language model": ["model.layers.17.self_attn.q_proj.weight", "model.layers.17.mlp.up_proj.weight"],
    "a T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
    "a VAE": ["decoder.middle.0.residual.0.gamma", "encoder.conv1.weight"],
    "a LoRA": ["transformer.blocks.0.attn1.to_q.lora_A.weight"],
    "a Flux model": ["double_blocks.0.img_attn.qkv.weight"],
    "is not a Helios transformer": ["something.weight"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_models_are_refused_by_name(tmp_path, kind):
    save_file({key: torch.zeros(4, 4) for key in FOREIGN[kind]}, tmp_path / "other.safetensors")
    with pytest.raises(HeliosError, match=kind.strip()) as told:
        open_transformer(tmp_path / "other.safetensors", "base")
    assert "other.safetensors" in str(told.value) and "\n" not in str(told.value)


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "is a web page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
        "is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "is a zip or PyTorch file": b"PK\x03\x04" + bytes(100),
        "is not a safetensors file": b"\x00" * 7 + b"\x7f" + b"nonsense",
        "ends within its header": content[:200],
        f"has {len(content) - 1000:,} of {len(content):,} bytes": content[:-1000],
    }


@pytest.mark.parametrize("number", range(6))
def test_damaged_files_are_refused_by_name(released, tmp_path, number):
    _, state, metadata = released
    file = tmp_path / "download.safetensors"
    save_file(state, file, metadata)
    message, content = list(damaged(file.read_bytes()).items())[number]
    file.write_bytes(content)
    with pytest.raises(HeliosError, match=message) as told:
        open_transformer(file)
    assert "download.safetensors" in str(told.value)


def test_missing_extra_and_misshaped_tensors_are_named(released, tmp_path):
    _, state, metadata = released
    changed = dict(state)
    del changed["blocks.1.attn2.to_k.bias"]
    changed["blocks.0.attn1.stray"] = torch.zeros(1)
    changed["proj_out.bias"] = torch.zeros(3)
    save_file(changed, tmp_path / "wrong.safetensors", metadata)
    with pytest.raises(HeliosError) as told:
        load_transformer(open_transformer(tmp_path / "wrong.safetensors"))
    for part in ("1 missing (blocks.1.cross_attn.k.bias)", "1 unexpected (blocks.0.self_attn.stray)",
                 "1 misshaped (output.proj.bias [3] instead of [64])"):  # fmt: skip
        assert part in str(told.value)


def test_missing_shard_is_named(released, tmp_path):
    folder, *_ = released
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(HeliosError, match=r"00001-of-00002\.safetensors is missing"):
        open_transformer(tmp_path / "cut")


def test_pipeline_takes_single_files(released, tmp_path):
    """The same clip from the folder and from converted files; what is missing is named."""
    folder = released[0]
    files = {part: tmp_path / f"{part}.safetensors" for part in ("transformer", "vae")}
    for part, file in files.items():
        convert(folder, file, "fp32", part, show_progress=False)

    def clip(*arguments, **options):
        pipeline = HeliosPipeline.from_pretrained(*arguments, **options)
        generator = torch.Generator().manual_seed(0)
        return pipeline("a boat", height=64, width=64, num_frames=33, generator=generator, output_type="uint8").frames

    expected = clip(folder)
    assert torch.equal(clip(files["transformer"], vae=files["vae"], text_encoder=folder), expected)
    assert torch.equal(clip(files["transformer"], vae=folder, text_encoder=folder), expected)
    with pytest.raises(HeliosError, match="is a transformer alone; give vae="):
        clip(files["transformer"])
    with pytest.raises(HeliosError, match="is a transformer alone; give text_encoder="):
        clip(files["transformer"], vae=folder)
    with pytest.raises(HeliosError, match=r"is another model, not a Wan 2\.1 VAE"):
        clip(files["transformer"], vae=files["transformer"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_width_is_bit_equal_in_every_layout(tmp_path, layout):
    """Two blocks of the released width 5120 in bfloat16, without any metadata about the configuration."""
    torch.manual_seed(0)
    model = HeliosTransformer(num_layers=2, dtype=torch.bfloat16).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if any(part in key for part in FLOAT32):
            parameter.data = parameter.data.float()
    expected = velocity(model, torch.bfloat16)
    state = {f"transformer.{key}": value for key, value in LAYOUTS[layout](to_diffusers(model.state_dict())).items()}
    file = tmp_path / "wide.safetensors"
    save_file(state, file)
    del model, state
    loaded = load_transformer(open_transformer(file, "mid"), torch.bfloat16)
    assert torch.equal(velocity(loaded, torch.bfloat16), expected)
    if layout == "diffusers":
        # Every Linear of both blocks to three mantissa bits: within 5% of the velocity on average.
        narrow = convert(file, tmp_path / "fp8.safetensors", "fp8", variant="mid", keep_blocks=0, show_progress=False)
        rounded = velocity(load_transformer(open_transformer(narrow), torch.bfloat16), torch.bfloat16).float()
        error = (rounded - expected.float()).abs().mean() / expected.float().abs().mean()
        print(f"scaled fp8 at width 5120: mean error {error:.4f} of the mean velocity")
        assert 0 < error <= 0.05
        narrow.unlink()
    file.unlink()
