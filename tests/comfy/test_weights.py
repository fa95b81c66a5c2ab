"""Weights in a real ComfyUI: every layout and type in the loader, LoRAs of every format, refusals by name.

Graphs here use core's KSampler: what is under test is the model, not the Helios samplers.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helios_core.checkpoint import from_diffusers
from helios_core.convert import convert
from helios_setup.errors import PromptRejectedError
from helios_setup.server import failure

TINY = "helios-tiny-distilled"
MODEL, SAMPLE, SAVE = "model", "sample", "save"


def base(comfy) -> Path:
    return comfy.log_file.parent


def models(comfy, kind) -> Path:
    folder = base(comfy) / "models" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def graph(model=TINY, **loader):
    """One chunk with core's own sampler, cut after the latent."""
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a red boat"}}
    return {
        MODEL: {
            "class_type": "HeliosModelLoader",
            "inputs": {"model": model, "weight_dtype": "default", "attention": "auto"} | loader,
        },
        "clip": {"class_type": "HeliosTextEncoderLoader", "inputs": {"text_encoder": TINY}},
        "text": text,
        "empty": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": 33, "batch_size": 1},
        },
        SAMPLE: {
            "class_type": "KSampler",
            "inputs": {
                "model": [MODEL, 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0],
                "seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        },
        SAVE: {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLE, 0], "filename_prefix": "test/weights"}},
    }  # fmt: skip


def latents(comfy, prompt) -> torch.Tensor:
    item = next(iter(comfy.run(prompt)["outputs"][SAVE].values()))[0]
    return load_file(base(comfy) / "output" / item["subfolder"] / item["filename"])["latent_tensor"]


def refused(comfy, prompt) -> str:
    """The message of a graph that must fail; afterwards the server must still serve."""
    try:
        message = failure(comfy.wait(comfy.queue(prompt)))
    except PromptRejectedError as error:
        message = str(error)
    assert comfy.get("/queue")["queue_running"] == []
    return message


@pytest.fixture(scope="module")
def released(tiny_folder):
    """helios-tiny's tensors under diffusers' names, and its configuration as metadata."""
    folder, state = tiny_folder("distilled"), {}
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        state |= load_file(file)
    config = (folder / "transformer" / "config.json").read_text()
    return folder, state, {"helios.config": config, "helios.variant": "distilled"}


@pytest.fixture(scope="module")
def expected(comfy):
    return latents(comfy, graph())


@pytest.mark.parametrize(
    ("rename", "prefix"),
    [
        (dict, "model.diffusion_model."),
        (from_diffusers, ""),
        (from_diffusers, "diffusion_model."),
        (dict, "transformer."),
    ],
    ids=["diffusers-core-prefix", "ours", "ours-prefixed", "diffusers-prefixed"],
)
def test_single_files_join_the_list_and_load(comfy, released, expected, rename, prefix):
    _, state, metadata = released
    name = f"{rename.__name__}-{prefix}helios.safetensors"
    save_file({prefix + key: value for key, value in rename(state).items()}, models(comfy, "diffusion_models") / name,
              metadata)  # fmt: skip
    assert name in comfy.object_info()["HeliosModelLoader"]["input"]["required"]["model"][1]["options"]
    assert torch.equal(latents(comfy, graph(name)), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.02), ("fp16", 0.003), ("fp8", 0.15)])
def test_converted_files_load(comfy, released, expected, dtype, tolerance):
    target = models(comfy, "diffusion_models") / f"converted-{dtype}.safetensors"
    convert(released[0], target, dtype, keep_blocks=0, show_progress=False)
    result = latents(comfy, graph(target.name))
    assert (result - expected).abs().mean() <= tolerance * expected.abs().mean()
    assert not torch.equal(result, expected)


def test_fp8_is_what_core_calls_quantised(comfy):
    assert "Using mixed precision operations" in comfy.log()


def test_cores_model_save_round_trips(comfy, expected):
    keep = {"class_type": "ModelSave", "inputs": {"model": [MODEL, 0], "filename_prefix": "kept"}}
    comfy.run({MODEL: graph()[MODEL], "keep": keep})
    (file,) = (base(comfy) / "output").glob("kept*.safetensors")
    shutil.move(file, models(comfy, "diffusion_models") / "kept.safetensors")
    assert torch.equal(latents(comfy, graph("kept.safetensors")), expected)


def test_cores_model_save_keeps_scaled_fp8(comfy, released):
    source = models(comfy, "diffusion_models") / "to-save.safetensors"
    convert(released[0], source, "fp8", keep_blocks=0, show_progress=False)
    keep = {"class_type": "ModelSave", "inputs": {"model": [MODEL, 0], "filename_prefix": "fp8"}}
    comfy.run({MODEL: graph(source.name)[MODEL], "keep": keep})
    (file,) = (base(comfy) / "output").glob("fp8*.safetensors")
    shutil.move(file, models(comfy, "diffusion_models") / "saved-fp8.safetensors")
    assert torch.equal(latents(comfy, graph("saved-fp8.safetensors")), latents(comfy, graph(source.name)))


def test_variant_comes_from_the_input_where_the_file_is_silent(comfy, released, expected):
    _, state, metadata = released
    save_file(
        state, models(comfy, "diffusion_models") / "silent.safetensors", {"helios.config": metadata["helios.config"]}
    )
    assert "set the input variant" in refused(comfy, graph("silent.safetensors"))
    assert torch.equal(latents(comfy, graph("silent.safetensors", variant="distilled")), expected)
    assert "contradicts" in refused(comfy, graph(TINY, variant="mid"))


def test_text_encoder_and_vae_files_equal_the_folder(comfy, released, expected):
    folder = released[0]
    convert(folder, models(comfy, "text_encoders") / "umt5.safetensors", "fp32", "text_encoder", show_progress=False)
    convert(folder, models(comfy, "vae") / "native.safetensors", "fp32", "vae", show_progress=False)
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", models(comfy, "vae") / "diffusers.safetensors")
    single = graph()
    single["clip"]["inputs"]["text_encoder"] = "umt5.safetensors"
    assert torch.equal(latents(comfy, single), expected)

    def decoded(loader):
        prompt = graph()
        del prompt[SAVE]
        prompt["vae"] = loader
        prompt["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": [SAMPLE, 0], "vae": ["vae", 0]}}
        prompt["images"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "vae"}}
        item = comfy.run(prompt)["outputs"]["images"]["images"][0]
        with Image.open(base(comfy) / "output" / item["subfolder"] / item["filename"]) as image:
            return np.asarray(image).astype(int)

    from_folder = decoded({"class_type": "HeliosVAELoader", "inputs": {"vae": TINY}})
    for loader in (
        {"class_type": "HeliosVAELoader", "inputs": {"vae": "native.safetensors"}},
        {"class_type": "HeliosVAELoader", "inputs": {"vae": "diffusers.safetensors"}},
    ):
        assert (decoded(loader) == from_folder).all()
    # Core's own network: another order of sums, so a value may round the other way.
    by_core = decoded({"class_type": "VAELoader", "inputs": {"vae_name": "native.safetensors"}})
    assert abs(by_core - from_folder).max() <= 1
    assert from_folder.std() > 5


def test_scaled_fp8_text_encoder_loads(comfy, released, expected):
    convert(
        released[0], models(comfy, "text_encoders") / "umt5-fp8.safetensors", "fp8", "text_encoder", show_progress=False
    )
    prompt = graph()
    prompt["clip"]["inputs"]["text_encoder"] = "umt5-fp8.safetensors"
    result = latents(comfy, prompt)
    assert 0 < (result - expected).abs().mean() <= 0.1 * expected.abs().mean()


UMT5_XXL = {
    "model_type": "umt5", "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "relative_attention_num_buckets": 32,
}  # fmt: skip
CLIP_LOADER = """
import json, sys
tree, plan, spiece = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, tree)
import comfy.options
comfy.options.enable_args_parsing()
import torch, comfy.sd, comfy.utils, comfy.text_encoders.wan as wan

tensors, metadata = json.load(open(plan))
with torch.device("meta"):
    state = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (dtype, shape) in tensors.items()}
state["spiece_model"] = torch.frombuffer(bytearray(open(spiece, "rb").read()), dtype=torch.uint8)
state, _ = comfy.utils.convert_old_quants(state, model_prefix="", metadata=metadata)
assert comfy.sd.detect_te_model(state) == comfy.sd.TEModel.T5_XXL
options = comfy.sd.t5xxl_detect([state])
assert ("t5_quantization_metadata" in options) == ("_quantization_metadata" in metadata)
assert options["dtype_t5"] == torch.bfloat16
model = wan.te(dtype_t5=torch.bfloat16)(device="meta").umt5xxl.transformer
own = {key: list(value.shape) for key, value in model.state_dict().items()}
companions = (".comfy_quant", ".weight_scale", "spiece_model")
ours = {key: list(value.shape) for key, value in state.items() if not key.endswith(companions)}
assert own.pop("encoder.embed_tokens.weight", None) in (None, ours["shared.weight"])
assert own == ours, (own.keys() ^ ours.keys())
tokens = wan.WanT5Tokenizer(tokenizer_data={"spiece_model": state["spiece_model"]}).tokenize_with_weights("a red boat")
print(json.dumps([token for token, _ in tokens["umt5xxl"][0]]))
"""


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_umt5_xxl_is_planned_as_cores_clip_loader_reads_it(comfyui_tree, released, tmp_path, dtype):
    """Names, shapes and types of a full-size conversion against core's own detection, model and tokenizer."""
    import sentencepiece

    from helios_core.convert import plan_text_encoder
    from helios_core.tiny import text_encoder_shapes

    (tmp_path / "model" / "text_encoder").mkdir(parents=True)
    (tmp_path / "model" / "tokenizer").mkdir()
    spiece = released[0] / "tokenizer" / "spiece.model"
    shutil.copy(spiece, tmp_path / "model" / "tokenizer" / "spiece.model")
    sparse_file(tmp_path / "model" / "text_encoder" / "model.safetensors",
                {key: ("F32", shape) for key, shape in text_encoder_shapes(UMT5_XXL).items()})  # fmt: skip
    plan = plan_text_encoder(tmp_path / "model", dtype, None, 0)
    told = {item.name: (str(item.dtype).removeprefix("torch."), item.shape) for item in plan.tensors}
    assert told.pop("spiece_model") == ("uint8", (spiece.stat().st_size,))
    (tmp_path / "plan.json").write_text(json.dumps([told, plan.metadata]))
    arguments = [sys.executable, "-c", CLIP_LOADER, str(comfyui_tree), str(tmp_path / "plan.json"), str(spiece)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = sentencepiece.SentencePieceProcessor(model_file=str(spiece)).encode("a red boat")
    assert json.loads(done.stdout.splitlines()[-1])[: len(ids) + 1] == [*ids, 1]


def sparse_file(path, tensors, metadata=None):
    """A complete safetensors file of zeros that takes no space on disk; ``tensors`` are (type, shape) by name."""
    header, position = {"__metadata__": metadata or {}}, 0
    for key, (name, shape) in sorted(tensors.items(), key=lambda item: item[1][0] != "F32"):
        end = position + {"F32": 4, "BF16": 2}[name] * torch.Size(shape).numel()
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as out:
        out.write(len(content).to_bytes(8, "little") + content)
        out.truncate(8 + len(content) + position)


def test_foreign_and_damaged_files_are_refused_by_name(comfy, released):
    _, state, metadata = released
    folder = models(comfy, "diffusion_models")
    foreign = {
        "is a Wan 2.1 model": ["blocks.0.self_attn.q.weight", "head.head.weight", "head.modulation"],
        "is a Stable Diffusion checkpoint": ["model.diffusion_model.input_blocks.0.0.weight"],
        "is a language model": ["model.layers.3.self_attn.q_proj.weight"],
    }
    for number, (message, keys) in enumerate(foreign.items()):
        save_file({key: torch.zeros(2, 2) for key in keys}, folder / f"foreign-{number}.safetensors")
        told = refused(comfy, graph(f"foreign-{number}.safetensors"))
        assert message in told and f"foreign-{number}.safetensors" in told and "\n" not in told.strip()
    (folder / "page.safetensors").write_bytes(b"<!DOCTYPE html><html></html>")
    assert "is a web page" in refused(comfy, graph("page.safetensors"))
    save_file(state, folder / "cut.safetensors", metadata)
    (folder / "cut.safetensors").write_bytes((folder / "cut.safetensors").read_bytes()[:-5])
    assert "is not a complete safetensors file" in refused(comfy, graph("cut.safetensors"))
    for kind, loader, name in (
        ("vae", "HeliosVAELoader", "vae"),
        ("text_encoders", "HeliosTextEncoderLoader", "text_encoder"),
    ):
        save_file(state, models(comfy, kind) / "transformer.safetensors")
        preview = {"class_type": "PreviewAny", "inputs": {"source": ["x", 0]}}
        told = refused(comfy, {"x": {"class_type": loader, "inputs": {name: "transformer.safetensors"}}, "y": preview})
        assert "transformer.safetensors is another model" in told
    assert latents(comfy, graph()).isfinite().all()


# --- LoRA ----------------------------------------------------------------------------------------------------

RANK, ALPHA = 4, 8.0
LINEAR = (
    "blocks.0.attn1.to_q",
    "blocks.1.attn2.to_k",
    "blocks.0.ffn.net.0.proj",
    "condition_embedder.time_proj",
    "proj_out",
)
CONVOLUTION = "patch_embedding", "patch_mid"


def pairs(state, modules, generator):
    """Random A and B by diffusers' module name; a convolution's A has the kernel's shape, as PEFT makes it."""
    made = {}
    for module in modules:
        weight = state[f"{module}.weight"]
        a = torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.2
        b = torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator) * 0.2
        made[module] = a, b
    return made


def musubi_name(module):
    return "lora_unet_" + next(iter(from_diffusers({module + ".": 0}))).rstrip(".").replace(".", "_")


def lora_formats(state):
    """Each format's file content, and the merged weights it stands for, computed here."""
    generator = torch.Generator().manual_seed(7)
    made = pairs(state, LINEAR + CONVOLUTION, generator)
    delta = {f"{module}.weight": (b.flatten(1) @ a.flatten(1)).reshape(state[f"{module}.weight"].shape)
             for module, (a, b) in made.items()}  # fmt: skip

    def named(write):
        return {key: value for module, (a, b) in made.items() for key, value in write(module, a, b).items()}

    formats = {
        "diffusers": named(lambda m, a, b: {f"transformer.{m}.lora_A.weight": a, f"transformer.{m}.lora_B.weight": b}),
        "bare": named(lambda m, a, b: {f"{m}.lora_A.weight": a, f"{m}.lora_B.weight": b}),
        "musubi": named(
            lambda m, a, b: {
                f"{musubi_name(m)}.lora_down.weight": a,
                f"{musubi_name(m)}.lora_up.weight": b,
                f"{musubi_name(m)}.alpha": torch.tensor(ALPHA),
            }
        ),
        "kohya-diffusers-names": named(
            lambda m, a, b: {
                f"lora_unet_{m.replace('.', '_')}.lora_down.weight": a,
                f"lora_unet_{m.replace('.', '_')}.lora_up.weight": b,
            }
        ),
    }
    # Only musubi's states an alpha; without one it is the rank.
    scales = dict.fromkeys(formats, 1.0) | {"musubi": ALPHA / RANK}
    return {
        name: (content, {key: state[key] + scales[name] * change for key, change in delta.items()})
        for name, content in formats.items()
    }


def partial_weights(state):
    """The training code's own file, and the weights it stands for."""
    generator = torch.Generator().manual_seed(8)
    content, merged = {}, {}
    for name in ("patch_short", "patch_mid", "patch_long"):
        for part in ("weight", "bias"):
            key = f"{name}.{part}"
            content[key] = merged[key] = torch.randn(state[key].shape, generator=generator) * 0.1
    for letter in "qkv":
        a, b = (torch.randn(shape, generator=generator) * 0.2 for shape in ((RANK, 48), (48, RANK)))
        own = f"blocks.1.attn1.{letter}_loras"
        content |= {f"{own}.down.weight": a, f"{own}.up.weight": b}
        merged[f"blocks.1.attn1.to_{letter}.weight"] = state[f"blocks.1.attn1.to_{letter}.weight"] + b @ a
    content["gan_final_head.weight"] = torch.zeros(3)
    return content, merged


def with_lora(name, strength, model=TINY, loader="HeliosLoraLoader"):
    prompt = graph(model)
    strength_name = "strength" if loader == "HeliosLoraLoader" else "strength_model"
    prompt["lora"] = {"class_type": loader, "inputs": {"model": [MODEL, 0], "lora_name": name, strength_name: strength}}
    prompt[SAMPLE]["inputs"]["model"] = ["lora", 0]
    return prompt


def merged_latents(comfy, released, merged, name):
    _, state, metadata = released
    save_file({**state, **merged}, models(comfy, "diffusion_models") / f"merged-{name}.safetensors", metadata)
    return latents(comfy, graph(f"merged-{name}.safetensors"))


@pytest.mark.parametrize("form", ["diffusers", "bare", "musubi", "kohya-diffusers-names"])
def test_lora_equals_weights_merged_here(comfy, released, expected, form):
    content, merged = lora_formats(released[1])[form]
    save_file(content, models(comfy, "loras") / f"{form}.safetensors")
    result = latents(comfy, with_lora(f"{form}.safetensors", 1.0))
    wanted = merged_latents(comfy, released, merged, form)
    assert (wanted - expected).abs().mean() > 0.05 * expected.abs().mean(), "the LoRA must matter"
    assert (result - wanted).abs().max() <= 2e-4
    assert torch.equal(latents(comfy, with_lora(f"{form}.safetensors", 0.0)), expected)


def test_half_strength_is_half_the_change(comfy, released):
    content, merged = lora_formats(released[1])["diffusers"]
    save_file(content, models(comfy, "loras") / "half.safetensors")
    half = {key: (value + released[1][key]) / 2 for key, value in merged.items()}
    wanted = merged_latents(comfy, released, half, "half")
    assert (latents(comfy, with_lora("half.safetensors", 0.5)) - wanted).abs().max() <= 2e-4


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_partial_weights_of_the_training_code(comfy, released, expected, suffix, strength):
    content, merged = partial_weights(released[1])
    file = models(comfy, "loras") / f"transformer_partial{suffix}"
    save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
    mixed = {key: strength * value + (1 - strength) * released[1][key] for key, value in merged.items()}
    wanted = merged_latents(comfy, released, mixed, f"partial-{strength}")
    assert (latents(comfy, with_lora(file.name, strength)) - wanted).abs().max() <= 2e-4
    assert (wanted - expected).abs().mean() > 0.01 * expected.abs().mean()
    assert "trained on history tokens only" in comfy.log()


def test_lora_on_scaled_fp8_and_wan_names_in_cores_loader(comfy, released):
    """Core's own loader and ours agree on a Wan-named file, on quantised weights too."""
    content, _ = lora_formats(released[1])["bare"]
    wan = {f"diffusion_model.{key}": value for key, value in from_diffusers(content).items()}
    save_file(wan, models(comfy, "loras") / "wan.safetensors")
    target = models(comfy, "diffusion_models") / "lora-fp8.safetensors"
    if not target.exists():
        convert(released[0], target, "fp8", keep_blocks=0, show_progress=False)
    for model in (TINY, target.name):
        ours, core = (latents(comfy, with_lora("wan.safetensors", 1.0, model, loader))
                      for loader in ("HeliosLoraLoader", "LoraLoaderModelOnly"))  # fmt: skip
        assert torch.equal(ours, core)


def test_unmatched_lora_keys_are_listed_and_an_unmatched_file_is_refused(comfy, released):
    content, _ = lora_formats(released[1])["diffusers"]
    stray = {"transformer.img_emb.proj.lora_A.weight": torch.zeros(4, 48)}
    save_file(content | stray, models(comfy, "loras") / "stray.safetensors")
    latents(comfy, with_lora("stray.safetensors", 1.0))
    assert "stray.safetensors: 1 keys match nothing in this model" in comfy.log()
    assert "transformer.img_emb.proj.lora_A.weight" in comfy.log()
    save_file(stray, models(comfy, "loras") / "nothing.safetensors")
    assert "has no weights for Helios" in refused(comfy, with_lora("nothing.safetensors", 1.0))
    small = {"lora_A": torch.zeros(4, 1536), "lora_B": torch.zeros(1536, 4)}
    small = {f"blocks.0.attn1.to_q.{role}.weight": value for role, value in small.items()}
    save_file(small, models(comfy, "loras") / "small.safetensors")
    assert "was made for another model" in refused(comfy, with_lora("small.safetensors", 1.0))
    (models(comfy, "loras") / "evil.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "cannot be read as plain weights" in refused(comfy, with_lora("evil.pth", 1.0))


# --- download ------------------------------------------------------------------------------------------------


def loopback_hub(folder):
    """The hub of the headless download tests; test folders are not packages, so it cannot be imported by name."""
    file = Path(__file__).parent.parent / "core" / "test_download.py"
    spec = importlib.util.spec_from_file_location("helios_download_tests", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Hub(folder)


def test_download_node_installs_a_model_only_when_run(new_comfy, tiny_folder, monkeypatch, tmp_path):
    hub = loopback_hub(tiny_folder("distilled"))
    threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}.items():
        monkeypatch.setenv(name, value)
    server = new_comfy(("--cpu", "--force-fp32", "--fp32-text-enc"))
    assert "Helios-Distilled is not installed" in refused(server, graph("Helios-Distilled"))
    assert not hub.requests

    node = {"class_type": "HeliosDownloadModel", "inputs": {"variant": "distilled"}}
    hub.good_token = "hf_right"
    assert "the hub refused the token" in refused(server, {"get": node})
    hub.good_token = None
    server.run({"get": node})
    states = [event.data["nodes"].get("get", {}) for event in server.events() if event.type == "progress_state"]
    assert any(state.get("max", 0) > 1e6 and state["value"] == state["max"] for state in states), states[-3:]
    assert torch.equal(latents(server, graph("Helios-Distilled")), latents(server, graph()))
    hub.shutdown()
    hub.server_close()


# --- memory --------------------------------------------------------------------------------------------------

FIRST_FORWARD = """
import importlib.util, json, sys, threading, time
tree, pack, file, text = sys.argv[1:5]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, tree)
import comfy.options
comfy.options.enable_args_parsing()
import torch, comfy.model_management, comfy.sd
spec = importlib.util.spec_from_file_location("helios_pack", pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["helios_pack"] = module
spec.loader.exec_module(module)

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], status("RssAnon"))
        time.sleep(0.05)

with torch.inference_mode():
    before = status("RssAnon")
    threading.Thread(target=watch, daemon=True).start()
    patcher = sys.modules["helios_pack.nodes.model"].load_helios_model(file)
    comfy.model_management.load_models_gpu([patcher])
    loaded = peak[0]
    history = {"history_short": torch.zeros(1, 16, 2, 2, 2), "history_mid": torch.zeros(1, 16, 2, 2, 2),
               "history_long": torch.zeros(1, 16, 16, 2, 2)}
    out = patcher.model.apply_model(torch.randn(1, 16, 1, 2, 2), torch.tensor([0.5]),
                                    c_crossattn=torch.randn(1, int(text), 4096), **history)
print(json.dumps({"before": before, "loaded": loaded, "peak": peak[0], "swap": status("VmSwap"),
                  "size": patcher.model_size(), "finite": bool(out.isfinite().all())}))
"""


@pytest.mark.slow
def test_the_whole_model_loads_and_runs_without_a_copy_in_memory(comfyui_tree, tmp_path):
    """28.7 GB of bf16, all zeros and sparse on disk: what is resident and not a page of the file stays small."""
    from helios_core.transformer import HeliosTransformer
    from helios_setup.paths import ROOT

    with torch.device("meta"):
        shapes = {key: value.shape for key, value in HeliosTransformer().state_dict().items()}
    float32 = ("time_embedding", "modulation", "norm3")
    types = {key: ("F32" if any(part in key for part in float32) else "BF16", shape) for key, shape in shapes.items()}
    file = tmp_path / "sparse.safetensors"
    sparse_file(file, types, {"helios.variant": "distilled"})
    arguments = [sys.executable, "-c", FIRST_FORWARD, str(comfyui_tree), str(ROOT), str(file), "64"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["size"] > 28.6e9 and told["finite"] and told["swap"] == 0
    # One layer is cast to float32 at a time: 13824 x 5120 numbers, or the time projection's 30720 x 5120.
    assert told["loaded"] - told["before"] < 0.2e9
    assert told["peak"] - told["before"] < 2e9
