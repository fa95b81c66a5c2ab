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
    ((name, (found,)),) = lora.low_rank.items()
    assert name == f"{module}.weight" and not lora.unmatched
    assert torch.equal(found.down, a) and torch.equal(found.up, b)
    assert found.alpha == (None if alpha is None else 2.0)


def test_alpha_from_diffusers_metadata(tmp_path):
    a, b = pair("blocks.11.self_attn.q")
    c, d = pair("output.proj")
    content = {"transformer.blocks.11.attn1.to_q.lora_A.weight": a, "transformer.blocks.11.attn1.to_q.lora_B.weight": b,
               "transformer.proj_out.lora_A.weight": c, "transformer.proj_out.lora_B.weight": d}  # fmt: skip
    stated = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"proj_out": 16}}
    save_file(content, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(stated)})
    lora = read_lora(tmp_path / "lora.safetensors", PARAMETERS)
    alphas = {name: pairs[0].alpha for name, pairs in lora.low_rank.items()}
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
    assert set(lora.low_rank) == {"blocks.11.self_attn.q.weight"}
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text_model.encoder.lora_A.weight": (4, 8)}, "has no weights for Helios: none of its 1 keys"),
        ({"blocks.11.attn1.to_q.lora_A.weight": (4, 48), "blocks.11.attn1.to_q.lora_B.weight": (64, 4)},
         r"made for another model: blocks\.11\.self_attn\.q is \[64, 4\] x \[4, 48\] there and \[48, 48\] here"),
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
