"""LoRA files sorted by what they do to which parameter; the arithmetic is tested through ComfyUI's own patches."""

import json

import pytest
import torch
from safetensors.torch import save_file

from helios_core.checkpoint.lora import read_lora
from helios_core.errors import HeliosError

PARAMETERS = {
    "patch_mid.weight": (48, 16, 2, 4, 4),
    "patch_mid.bias": (48,),
    "text_embedding.0.weight": (48, 32),
    "time_projection.1.weight": (288, 48),
    "blocks.11.self_attn.q.weight": (48, 48),
    "blocks.11.self_attn.q.bias": (48,),
    "blocks.11.self_attn.history_key_scale": (2,),
    "blocks.11.cross_attn.o.weight": (48, 48),
    "blocks.11.ffn.0.weight": (96, 48),
    "output.proj.weight": (64, 48),
}
# One module in every spelling that is known to occur.
SPELLINGS = {
    "blocks.11.self_attn.q": [
        "transformer.blocks.11.attn1.to_q.lora_{}.weight",
        "base_model.model.blocks.11.attn1.to_q.lora_{}.default.weight",
        "diffusion_model.blocks.11.self_attn.q.lora_{}.weight",
        "model.diffusion_model.blocks.11.attn1.to_q.lora_{}.weight",
        "blocks.11.attn1.to_q.lora_{}.weight",
        "blocks.11.self_attn.q.lora_{}",
    ],
    "blocks.11.ffn.0": ["blocks.11.ffn.net.0.proj.lora_{}.weight", "transformer.blocks.11.ffn.0.lora_{}.weight"],
    "text_embedding.0": ["transformer.condition_embedder.text_embedder.linear_1.lora_{}.weight"],
    "time_projection.1": [
        "condition_embedder.time_proj.lora_{}.weight",
        "transformer.time_projection.1.lora_{}.weight",
    ],
    "output.proj": ["transformer.proj_out.lora_{}.weight"],
}
UNDERSCORED = {
    "blocks.11.self_attn.q": ["lora_unet_blocks_11_self_attn_q", "lora_unet_blocks_11_attn1_to_q"],
    "blocks.11.cross_attn.o": ["lora_unet_blocks_11_cross_attn_o", "lora_transformer_blocks_11_attn2_to_out_0"],
    "blocks.11.ffn.0": ["lora_unet_blocks_11_ffn_0", "lora_unet_blocks_11_ffn_net_0_proj"],
    "text_embedding.0": ["lora_unet_text_embedding_0", "lora_unet_condition_embedder_text_embedder_linear_1"],
}


def pair(module, rank=4):
    out, *inner = PARAMETERS[f"{module}.weight"]
    return torch.randn(rank, *inner), torch.randn(out, rank, *[1] * (len(inner) - 1))


def cases():
    for module, patterns in SPELLINGS.items():
        for pattern in patterns:
            yield module, pattern.format("A"), pattern.format("B"), None
    for module, names in UNDERSCORED.items():
        for name in names:
            yield module, f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


@pytest.mark.parametrize(("module", "down", "up", "alpha"), list(cases()), ids=str)
def test_spelling(tmp_path, module, down, up, alpha):
    a, b = pair(module)
    content = {down: a, up: b} | ({} if alpha is None else {alpha: torch.tensor(2.0)})
    save_file(content, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", PARAMETERS)
    ((name, (found,)),) = lora.adapters.items()
    assert name == f"{module}.weight" and not lora.unmatched
    assert torch.equal(found.pop("lora_down.weight"), a) and torch.equal(found.pop("lora_up.weight"), b)
    assert {role: tensor.item() for role, tensor in found.items()} == ({} if alpha is None else {"alpha": 2.0})


def test_alpha_from_diffusers_metadata(tmp_path):
    a, b = pair("blocks.11.self_attn.q")
    c, d = pair("output.proj")
    content = {"transformer.blocks.11.attn1.to_q.lora_A.weight": a, "transformer.blocks.11.attn1.to_q.lora_B.weight": b,
               "transformer.proj_out.lora_A.weight": c, "transformer.proj_out.lora_B.weight": d}  # fmt: skip
    stated = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"proj_out": 16}}
    save_file(content, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(stated)})
    lora = read_lora(tmp_path / "lora.safetensors", PARAMETERS)
    alphas = {name: pairs[0]["alpha"].item() for name, pairs in lora.adapters.items()}
    assert alphas == {"blocks.11.self_attn.q.weight": 8.0, "output.proj.weight": 16.0}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_partial_weights_of_the_training_code(tmp_path, suffix):
    content = {
        "patch_mid.weight": torch.randn(48, 16, 2, 4, 4),
        "patch_mid.bias": torch.randn(48),
        "blocks.11.attn1.history_key_scale": torch.randn(2),
        "blocks.11.attn1.q_loras.down.weight": torch.randn(4, 48),
        "blocks.11.attn1.q_loras.up.weight": torch.randn(48, 4),
        "gan_heads.5.weight": torch.randn(3),
        "gan_final_head.weight": torch.randn(3),
    }
    file = tmp_path / f"transformer_partial{suffix}"
    save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
    lora = read_lora(file, PARAMETERS)
    assert set(lora.replacements) == {"patch_mid.weight", "patch_mid.bias", "blocks.11.self_attn.history_key_scale"}
    assert set(lora.adapters) == {"blocks.11.self_attn.q.weight"}
    assert (lora.history_only, lora.unmatched, lora.count) == (1, [], 4)


def test_differences_and_lone_halves(tmp_path):
    a, _ = pair("output.proj")
    content = {"diffusion_model.blocks.11.self_attn.q.diff": torch.zeros(48, 48),
               "diffusion_model.blocks.11.self_attn.q.diff_b": torch.zeros(48),
               "transformer.proj_out.lora_A.weight": a, "some.other.tensor": torch.zeros(1)}  # fmt: skip
    save_file(content, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", PARAMETERS)
    assert set(lora.differences) == {"blocks.11.self_attn.q.weight", "blocks.11.self_attn.q.bias"}
    assert sorted(lora.unmatched) == ["some.other.tensor", "transformer.proj_out.lora_A.weight"]


LYCORIS = {
    "loha": {"hada_w1_a": (48, 4), "hada_w1_b": (4, 48), "hada_w2_a": (48, 4), "hada_w2_b": (4, 48)},
    "lokr": {"lokr_w1": (6, 8), "lokr_w2": (8, 6)},
    "lokr of four": {"lokr_w1_a": (6, 2), "lokr_w1_b": (2, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 6)},
}


@pytest.mark.parametrize("form", LYCORIS)
@pytest.mark.parametrize("name", ["lycoris_blocks_11_attn1_to_q", "base_model.model.blocks.11.attn1.to_q",
                                  "diffusion_model.blocks.11.self_attn.q"])  # fmt: skip
def test_loha_and_lokr_keep_their_tensors(tmp_path, form, name):
    content = {role: torch.randn(shape) for role, shape in LYCORIS[form].items()}
    content |= {"alpha": torch.tensor(2.0), "dora_scale": torch.ones(48, 1)}
    save_file({f"{name}.{role}": tensor for role, tensor in content.items()}, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", PARAMETERS)
    ((changed, (found,)),) = lora.adapters.items()
    assert changed == "blocks.11.self_attn.q.weight" and not lora.unmatched
    assert found.keys() == content.keys() and all(torch.equal(found[role], content[role]) for role in content)


def test_half_a_format_matches_nothing(tmp_path):
    whole, half = "blocks.11.self_attn.q", "blocks.11.cross_attn.o"
    content = {f"{whole}.{role}": torch.zeros(shape) for role, shape in LYCORIS["loha"].items()}
    content |= {f"{half}.lokr_w1": torch.zeros(6, 8), f"{half}.hada_w1_a": torch.zeros(48, 4)}
    save_file(content, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", PARAMETERS)
    assert set(lora.adapters) == {f"{whole}.weight"}
    assert sorted(lora.unmatched) == [f"{half}.hada_w1_a", f"{half}.lokr_w1"]
    assert lora.warnings() == [
        f"2 keys match nothing in this model and are skipped: {', '.join(lora.unmatched)}"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text_model.encoder.lora_A.weight": (4, 8)}, "has no weights for Helios: none of its 1 keys"),
        ({"blocks.11.attn1.to_q.lora_A.weight": (4, 48), "blocks.11.attn1.to_q.lora_B.weight": (64, 4)},
         r"made for another model: blocks\.11\.self_attn\.q is \[64, 4\] x \[4, 48\] there and \[48, 48\] here"),
        ({f"blocks.11.self_attn.q.{role}": shape for role, shape in {**LYCORIS["lokr"], "lokr_w2": (8, 5)}.items()},
         r"q is \[6, 8\] x \[8, 5\] there and \[48, 48\] here"),
        ({f"blocks.11.self_attn.q.{role}": shape for role, shape in {**LYCORIS["loha"], "hada_t1": (4, 4)}.items()},
         r"save it without Tucker"),
        ({"blocks.11.attn1.to_q.lora_A.weight": (0, 48), "blocks.11.attn1.to_q.lora_B.weight": (48, 0)},
         r"made for another model: blocks\.11\.self_attn\.q is \[48, 0\] x \[0, 48\] there"),
        ({"patch_mid.bias": (3,)}, r"made for another model: patch_mid\.bias is \[3\] there and \[48\] here"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(tmp_path, content, message):
    save_file({key: torch.zeros(shape) for key, shape in content.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(HeliosError, match=message):
        read_lora(tmp_path / "lora.safetensors", PARAMETERS)


class Code:
    def __reduce__(self):
        return print, ("a pickle that runs code",)


def test_pickles_run_nothing(tmp_path, capsys):
    torch.save({"patch_mid.bias": Code()}, tmp_path / "evil.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04cut")
    for name, message in (("evil.pth", "plain weights"), ("cut.pth", "plain weights"), ("list.pt", "named tensors")):
        with pytest.raises(HeliosError, match=message) as told:
            read_lora(tmp_path / name, PARAMETERS)
        assert name in str(told.value) and "\n" not in str(told.value)
    assert capsys.readouterr().out == ""
    with pytest.raises(HeliosError, match="is missing"):
        read_lora(tmp_path / "absent.safetensors", PARAMETERS)
