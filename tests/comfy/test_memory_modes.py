"""Core's memory modes: the same latents however little of the model core may load.

--novram and --lowvram exclude --cpu, and a CPU counts as device memory without limit, so here a pack of the test's own
gives core's partial loading the budgets that these flags lead to: nothing, most of the model, all of it. What runs is
core's own code: layers that are cast on use, and LoRAs applied on use. With a GPU the flags themselves are tried.
"""

import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_setup.paths import PACK_NAME, ROOT

TINY = "helios-tiny-distilled"
FLAGS = ("--force-fp32", "--fp32-text-enc")
BUDGET_PACK = """
from pathlib import Path

import comfy.model_management

original = comfy.model_management.LoadedModel.model_load


def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
    share = float(Path(__file__).with_name("share").read_text(encoding="utf-8"))
    budget = 0 if share >= 1 else max(0.1, share * self.model.model_size())
    return original(self, budget, force_patch_weights)


comfy.model_management.LoadedModel.model_load = model_load
NODE_CLASS_MAPPINGS = {}
"""


def graph(lora=None):
    """One chunk of the Distilled sampler, cut after the latent."""
    model, wanted = ["model", 0], {}
    if lora is not None:
        wanted["lora"] = {
            "class_type": "HeliosLoraLoader",
            "inputs": {"model": model, "lora_name": lora, "strength": 1.0},
        }
        model = ["lora", 0]
    return wanted | {
        "model": {
            "class_type": "HeliosModelLoader",
            "inputs": {"model": TINY, "weight_dtype": "default", "attention": "auto"},
        },
        "clip": {"class_type": "HeliosTextEncoderLoader", "inputs": {"text_encoder": TINY}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a red boat"}},
        "history": {"class_type": "HeliosEmptyHistory", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {
            "class_type": "HeliosDMDSampler",
            "inputs": {"steps": "1, 1, 1", "amplify_first_chunk": False, "stage_range": "", "gamma": "1/3"},
        },
        "chunk": {
            "class_type": "HeliosSampleChunk",
            "inputs": {
                "model": model, "positive": ["text", 0], "negative": ["text", 0], "cfg": 1.0,
                "sampler": ["sampler", 0], "history": ["history", 0], "seed": 3,
            },
        },
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["chunk", 0], "filename_prefix": "memory"}},
    }  # fmt: skip


def latents(comfy, prompt) -> torch.Tensor:
    """After unloading everything, so that a load in the present mode comes first."""
    status, _ = comfy.post_raw("/free", {"unload_models": True, "free_memory": True})
    assert status == 200
    time.sleep(1.5)  # the flags are read by the idle worker, which wakes once a second
    item = next(iter(comfy.run(prompt)["outputs"]["save"].values()))[0]
    return load_file(comfy.log_file.parent / "output" / item["subfolder"] / item["filename"])["latent_tensor"]


def write_lora(folder, tiny_folder):
    """A LoRA on layers of every kind."""
    state = {}
    for file in sorted((tiny_folder("distilled") / "transformer").glob("*.safetensors")):
        state |= load_file(file)
    generator, content = torch.Generator().manual_seed(7), {}
    for module in ("blocks.0.attn1.to_q", "blocks.1.attn2.to_k", "blocks.0.ffn.net.0.proj", "proj_out"):
        rows, columns = state[f"{module}.weight"].shape
        content[f"transformer.{module}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.2
        content[f"transformer.{module}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.2
    folder.mkdir(parents=True, exist_ok=True)
    save_file(content, folder / "lora.safetensors")


def test_partial_loading_gives_the_same_latents(new_comfy, tiny_folder, tmp_path):
    pack = tmp_path / "budget"
    pack.mkdir()
    (pack / "__init__.py").write_text(BUDGET_PACK)
    share = pack / "share"
    share.write_text("1")
    comfy = new_comfy(("--cpu", *FLAGS), {PACK_NAME: ROOT, "budget": pack})
    write_lora(comfy.log_file.parent / "models" / "loras", tiny_folder)
    plain, changed = latents(comfy, graph()), latents(comfy, graph("lora.safetensors"))
    assert (changed - plain).abs().mean() > 0.05 * plain.abs().mean(), "the LoRA must matter"
    assert not partial_loads(comfy)
    for budget in ("0", "0.9"):
        share.write_text(budget)
        loads = len(partial_loads(comfy))
        # Layers that are cast on use take core's own operators instead of our faster ones: other roundings.
        assert (latents(comfy, graph()) - plain).abs().max() <= 1e-5 * plain.abs().max()
        # Merged once or added on use.
        assert (latents(comfy, graph("lora.safetensors")) - changed).abs().max() <= 1e-5 * changed.abs().max()
        fresh = partial_loads(comfy)[loads:]
        assert len(fresh) == 2 and all(offloaded > 0 for _, offloaded, _ in fresh), "with and without the LoRA"
        assert all((loaded > 0) == (budget != "0") for loaded, *_ in fresh)
        if budget == "0":
            assert [patches > 0 for *_, patches in fresh] == [False, True]


def partial_loads(comfy) -> list[tuple[float, float, int]]:
    """MB loaded, MB left in host memory and patched layers among these, of every partial load of the transformer."""
    pattern = (
        r"Requested to load HeliosModel\n[^\n]*loaded partially; [\d.]+ MB usable, "
        r"([\d.]+) MB loaded, ([\d.]+) MB offloaded, .*? lowvram patches: (\d+)"
    )
    return [(float(a), float(b), int(c)) for a, b, c in re.findall(pattern, comfy.log())]


@pytest.mark.gpu
def test_cores_flags_give_the_same_latents_on_a_gpu(new_comfy, tiny_folder):
    """Dynamic VRAM (core's default), its older estimates, and both small-memory flags; with a LoRA and without."""
    results = {}
    for mode in ((), ("--disable-dynamic-vram",), ("--disable-dynamic-vram", "--lowvram"), ("--novram",)):
        comfy = new_comfy((*FLAGS, *mode))
        write_lora(Path(comfy.log_file.parent) / "models" / "loras", tiny_folder)
        results[mode] = latents(comfy, graph()), latents(comfy, graph("lora.safetensors"))
        comfy.stop()
    plain, changed = results[()]
    for mode, (result, result_changed) in results.items():
        assert (result - plain).abs().max() <= 1e-4 * plain.abs().max(), mode
        assert (result_changed - changed).abs().max() <= 1e-3 * changed.abs().max(), mode
