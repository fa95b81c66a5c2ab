"""LoRAs of every format in a real ComfyUI, against weights merged here."""

import pytest
import torch
from helios_comfy_one_chunk import MODEL, SAMPLE, TINY, base, graph, latents, models, refused
from helios_training import lora as training
from safetensors.torch import load_file, save_file

from helios_core.checkpoint import from_diffusers, load_transformer, open_transformer, to_diffusers
from helios_core.checkpoint.lora import read_lora
from helios_core.commands.convert import convert

RANK, ALPHA = 4, 8.0
LINEAR = (
    "blocks.0.attn1.to_q",
    "blocks.1.attn2.to_k",
    "blocks.0.ffn.net.0.proj",
    "condition_embedder.time_proj",
    "proj_out",
)
CONVOLUTION = "patch_embedding", "patch_mid"


@pytest.fixture(scope="module")
def expected(comfy):
    return latents(comfy, graph())


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


def lycoris_formats(state):
    """A LoHa, a LoKr of whole factors and one of four, each under another tool's names, and their merged weights."""
    generator = torch.Generator().manual_seed(9)

    def factors(**shapes):
        return {role: torch.randn(shape, generator=generator) * 0.4 for role, shape in shapes.items()}

    def loha(rows, columns):
        made = factors(hada_w1_a=(rows, RANK), hada_w1_b=(RANK, columns), hada_w2_a=(rows, RANK),
                       hada_w2_b=(RANK, columns))  # fmt: skip
        first, second = ((made[f"hada_w{i}_a"] @ made[f"hada_w{i}_b"]) for i in (1, 2))
        return made | {"alpha": torch.tensor(ALPHA)}, ALPHA / RANK * first * second

    def kronecker(first, second):
        return torch.einsum("ij,kl->ikjl", first, second).reshape(first.shape[0] * second.shape[0], -1)

    def lokr(rows, columns):
        made = factors(lokr_w1=(4, 8), lokr_w2=(rows // 4, columns // 8))
        return made, kronecker(made["lokr_w1"], made["lokr_w2"])

    def small_lokr(rows, columns):
        made = factors(lokr_w1=(2, 4), lokr_w2_a=(rows // 2, RANK), lokr_w2_b=(RANK, columns // 4))
        change = kronecker(made["lokr_w1"], made["lokr_w2_a"] @ made["lokr_w2_b"])
        return made | {"alpha": torch.tensor(ALPHA)}, ALPHA / RANK * change

    names = {
        "loha": (loha, lambda m: f"lycoris_{m.replace('.', '_')}"),
        "lokr": (lokr, lambda m: f"base_model.model.{m}"),
        "small-lokr": (small_lokr, musubi_name),
    }
    formats = {}
    for form, (make, name) in names.items():
        content, merged = {}, {}
        for module in (*LINEAR, *CONVOLUTION):
            weight = state[f"{module}.weight"]
            made, change = make(weight.shape[0], weight[0].numel())
            if form == "lokr" and module in CONVOLUTION:  # whole factors have the kernel's shape
                second = made["lokr_w2"]
                made["lokr_w2"] = second.reshape(second.shape[0], -1, *weight.shape[2:])
            content |= {f"{name(module)}.{role}": tensor for role, tensor in made.items()}
            merged[f"{module}.weight"] = weight + change.reshape(weight.shape)
        formats[form] = content, merged
    return formats


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


@pytest.mark.parametrize("form", ["diffusers", "bare", "musubi", "kohya-diffusers-names", "loha", "lokr", "small-lokr"])
def test_lora_equals_weights_merged_here(comfy, released, expected, form):
    content, merged = (lora_formats(released[1]) | lycoris_formats(released[1]))[form]
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


def test_a_trained_lora_is_read_by_ours_and_cores_loader(comfy, released, expected):
    """Against the trained module's own arithmetic, merged: W + alpha / rank * B A."""
    transformer = load_transformer(open_transformer(released[0]))
    adapters = training.Adapters(transformer, RANK, ALPHA)
    generator, merged = torch.Generator().manual_seed(9), {}
    for index, block in enumerate(transformer.blocks):
        for layer in adapters.layers:
            weight = block.get_submodule(layer).weight
            key = f"{index}_{layer.replace('.', '_')}"
            torch.nn.init.normal_(adapters.up[key], std=0.05, generator=generator)
            change = adapters.change(index, layer, torch.eye(weight.shape[1])).T
            merged[f"blocks.{index}.{layer}.weight"] = (weight + change).detach().contiguous()
    training.write_lora(adapters, models(comfy, "loras") / "trained.safetensors", torch.float32, "distilled")
    wanted = merged_latents(comfy, released, to_diffusers(merged), "trained")
    assert (wanted - expected).abs().mean() > 0.05 * expected.abs().mean(), "the LoRA must matter"
    for loader in ("HeliosLoraLoader", "LoraLoaderModelOnly"):
        found = latents(comfy, with_lora("trained.safetensors", 1.0, loader=loader))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("options", [{}, {"bypass_mode": True, "checkpoint_depth": 2}], ids=["patched", "bypass"])
def test_cores_train_lora_trains_a_helios_model(comfy, released, options):
    """Core's node, with core's own objective. The history that a conditioning carries is trained with."""
    prompt = graph() | {
        "vae": {"class_type": "HeliosVAELoader", "inputs": {"vae": TINY}},
        "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 8000}},
        "history": {
            "class_type": "HeliosImageHistory",
            "inputs": {"vae": ["vae", 0], "image": ["image", 0], "width": 64, "height": 64},
        },
        "applied": {
            "class_type": "HeliosApplyHistory",
            "inputs": {"positive": ["text", 0], "negative": ["text", 0], "history": ["history", 0]},
        },
    }
    inputs = {
        "model": [MODEL, 0], "latents": [SAMPLE, 0], "positive": ["applied", 0], "batch_size": 1,
        "grad_accumulation_steps": 1, "steps": 3, "learning_rate": 0.05, "rank": RANK, "optimizer": "AdamW",
        "loss_function": "MSE", "seed": 1, "training_dtype": "bf16", "lora_dtype": "bf16", "quantized_backward": False,
        "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1, "offloading": False,
        "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }  # fmt: skip
    name = "-".join(["by-core", *options])
    prompt["train"] = {"class_type": "TrainLoraNode", "inputs": inputs | options}
    prompt["saved"] = {"class_type": "SaveLoRA", "inputs": {"lora": ["train", 0], "prefix": f"loras/{name}"}}
    comfy.run(prompt)
    (file,) = (base(comfy) / "output" / "loras").glob(f"{name}_*")
    content = load_file(file)
    shapes = {key: tuple(x.shape) for key, x in from_diffusers(released[1]).items()}
    read = read_lora(file, shapes)
    assert not read.unmatched
    assert {f"blocks.1.{layer}.weight" for layer in training.LAYERS} | {"patch_long.weight"} <= read.adapters.keys()
    assert all(x.any() for key, x in content.items() if key.endswith("lora_up.weight")), "every layer has learned"
