"""Weights in a real ComfyUI: every layout and type in the loaders, refusals by name, memory."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helios_comfy_one_chunk import MODEL, SAMPLE, SAVE, TINY, base, graph, latents, models, refused
from PIL import Image
from safetensors.torch import save_file

from helios_core.checkpoint import from_diffusers
from helios_core.commands.convert import convert


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


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("bf16", 0.02), ("fp16", 0.003), ("fp8", 0.15), ("q8_0", 0.02), ("q5_1", 0.1), ("q4_0", 0.15)],
)
def test_converted_files_load(comfy, released, expected, dtype, tolerance):
    target = models(comfy, "diffusion_models") / f"converted-{dtype}.{'gguf' if '_' in dtype else 'safetensors'}"
    convert(released[0], target, dtype, keep_blocks=0, show_progress=False)
    before = len(comfy.log())
    result = latents(comfy, graph(target.name))
    assert (result - expected).abs().mean() <= tolerance * expected.abs().mean()
    assert not torch.equal(result, expected)
    # What core says of a model that it takes for quantised.
    assert ("Using mixed precision operations" in comfy.log()[before:]) is (dtype == "fp8" or "_" in dtype)


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

    from helios_core.checkpoint.text import umt5_shapes
    from helios_core.commands.conversion_plan import plan_text_encoder

    (tmp_path / "model" / "text_encoder").mkdir(parents=True)
    (tmp_path / "model" / "tokenizer").mkdir()
    spiece = released[0] / "tokenizer" / "spiece.model"
    shutil.copy(spiece, tmp_path / "model" / "tokenizer" / "spiece.model")
    sparse_file(tmp_path / "model" / "text_encoder" / "model.safetensors",
                {key: ("F32", shape) for key, shape in umt5_shapes(UMT5_XXL, tmp_path).items()})  # fmt: skip
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
    patcher = sys.modules["helios_pack.nodes.adapters.model"].load_helios_model(file)
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
    from helios_core.networks.transformer import HeliosTransformer
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
