"""GGUF files in a real ComfyUI: packed layers at work, with a LoRA on top, and saved again."""

import json
import shutil

import gguf
import pytest
import torch
from helios_comfy_one_chunk import MODEL, SAMPLE, base, graph, latents, models, refused
from safetensors.torch import load_file, save_file

from helios_core.checkpoint import load_transformer, open_transformer, to_diffusers
from helios_core.commands.convert import convert
from helios_core.commands.embedded import embedded

SMALL = embedded("distilled").folder
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.k", "blocks.2.ffn.0", "blocks.5.ffn.2")


def chunk(model, lora=None):
    """One chunk of helios-small."""
    made = graph(model)
    made["clip"]["inputs"]["text_encoder"] = "helios-small-distilled"
    if lora:
        made["lora"] = {"class_type": "HeliosLoraLoader",
                        "inputs": {"model": [MODEL, 0], "lora_name": lora, "strength": 1.0}}  # fmt: skip
        made[SAMPLE]["inputs"]["model"] = ["lora", 0]
    return made


def write_plain(comfy, name, state):
    """Float32 weights as a file whose settings are helios-small's."""
    metadata = {"helios.variant": "distilled", "helios.config": config()}
    save_file({key: value.contiguous() for key, value in state.items()}, models(comfy, "diffusion_models") / name,
              metadata)  # fmt: skip


def config():
    return json.dumps(open_transformer(SMALL).config.to_dict())


def off(found, wanted):
    return float((found - wanted).abs().mean() / wanted.abs().mean())


@pytest.mark.parametrize(("name", "tolerance"), [pytest.param("q8_0", 0.01, marks=pytest.mark.slow), ("q4_0", 0.12)])
def test_a_lora_on_packed_weights_is_the_merged_model(comfy, name, tolerance):
    file = convert(SMALL, models(comfy, "diffusion_models") / f"lora-{name}.gguf", name, show_progress=False)
    state = load_transformer(open_transformer(file)).state_dict()
    write_plain(comfy, f"lora-{name}.safetensors", state)
    # Unpacked at use or before: the same numbers, and core's own roundings.
    plain = latents(comfy, chunk(f"lora-{name}.safetensors"))
    assert off(latents(comfy, chunk(file.name)), plain) < 1e-4
    generator, content = torch.Generator().manual_seed(7), {}
    for layer in LAYERS:
        rows, columns = state[f"{layer}.weight"].shape
        down, up = (torch.randn(shape, generator=generator) * 0.25 for shape in ((4, columns), (rows, 4)))
        content |= {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}
        state[f"{layer}.weight"] = state[f"{layer}.weight"] + up @ down
    save_file(content, models(comfy, "loras") / f"{name}.safetensors")
    write_plain(comfy, f"merged-{name}.safetensors", state)
    merged = latents(comfy, chunk(f"merged-{name}.safetensors"))
    patched = latents(comfy, chunk(file.name, f"{name}.safetensors"))
    # Core packs a patched weight again, so that the form's rounding comes twice.
    assert off(patched, merged) < tolerance < off(plain, merged)
    assert off(latents(comfy, chunk(file.name)), plain) < 1e-4, "the LoRA is taken off again"


def test_another_tools_file_and_cores_model_save(comfy):
    """Architecture wan, a prefix, diffusers' names; the same model saved by core is read again."""
    state = to_diffusers(load_transformer(open_transformer(SMALL)).state_dict())
    file = models(comfy, "diffusion_models") / "theirs-Q5_1.gguf"
    writer = gguf.GGUFWriter(file, "wan")
    writer.add_string("helios.config", config())
    packed = {}
    for key, value in state.items():
        fits = value.ndim == 2 and value.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q5_1 if fits else gguf.GGMLQuantizationType.F32
        content = gguf.quants.quantize(value.float().numpy(), kind)
        writer.add_tensor(f"model.diffusion_model.{key}", content, raw_dtype=kind)
        packed[key] = torch.from_numpy(gguf.quants.dequantize(content, kind).reshape(value.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_plain(comfy, "theirs.safetensors", packed)
    theirs = chunk(file.name)
    assert "set the input variant" in refused(comfy, theirs), "another tool does not say which Helios it is"
    theirs[MODEL]["inputs"]["variant"] = "distilled"
    found = latents(comfy, theirs)
    # What lies outside of the blocks is held as bfloat16.
    assert off(found, latents(comfy, chunk("theirs.safetensors"))) < 0.02
    keep = {"class_type": "ModelSave", "inputs": {"model": [MODEL, 0], "filename_prefix": "packed"}}
    comfy.run({MODEL: theirs[MODEL], "keep": keep})
    (saved,) = (base(comfy) / "output").glob("packed*.safetensors")
    kept = load_file(saved)
    assert {kept[key].dtype for key in kept if key.endswith("blocks.0.ffn.0.weight")} == {torch.uint8}
    shutil.move(saved, models(comfy, "diffusion_models") / "packed.safetensors")
    assert torch.equal(latents(comfy, chunk("packed.safetensors")), found)
