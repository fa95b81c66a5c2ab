"""helios-tiny: a complete Helios checkpoint of random weights, 5 MB, in the released folder layout.

It lets tests and demos run every code path on a CPU without a download. The weights are random but not
unstructured: convolutions are low-pass, and the transformer roughly predicts the part of its input that its
neighbours in space and time do not share. So the picture is a slow drift of soft colours instead of static.
It shows nothing that a prompt asks for.
"""

import io
import json
import math
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import HeliosError
from ..variants import BASE, DEFAULT, DISTILLED, VARIANTS
from .tiny_shapes import text_encoder_shapes, transformer_shapes, vae_shapes

FORMAT = 1  # raise it when the bytes that write_tiny produces for a seed change
README = """helios-tiny: random weights for tests and demos; it makes abstract noise, not video.

The layout, file names and tensor names are those of a released Helios checkpoint, the sizes are not.
The weights were drawn by helios_core.tiny and never trained: do not judge Helios by them.
"""

TRANSFORMER_CONFIG: dict[str, Any] = {
    "_class_name": "HeliosTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-06,
    "added_kv_proj_dim": None,
    "rope_dim": [8, 8, 8],
    "rope_theta": 10000.0,
    "guidance_cross_attn": True,
    "zero_history_timestep": True,
    "has_multi_term_memory_patch": True,
    "is_amplify_history": False,
    "history_scale_mode": "per_head",
}

# The released Wan 2.1 statistics: core ComfyUI assumes exactly these for every Wan VAE.
LATENTS_MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]  # fmt: skip
LATENTS_STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
               3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]  # fmt: skip
VAE_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "latents_mean": LATENTS_MEAN,
    "latents_std": LATENTS_STD,
}

TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-06,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "vocab_size": 256,
}


class _Normal:
    """Normal deviates from one seeded CPU generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
        return std * torch.randn(shape, generator=self._generator)

    def matrix(self, shape: tuple[int, ...], gain: float = 1.0) -> Tensor:
        """Weights that keep the variance of a white input, times gain squared."""
        return self(shape, gain / math.sqrt(math.prod(shape[1:])))


def _transformer_tensors(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    normal = _Normal(seed)
    dim, channels = config["num_attention_heads"] * config["attention_head_dim"], config["in_channels"]
    # Orthonormal rows, so that a white latent becomes a white token and proj_out can map it back.
    basis = torch.linalg.qr(normal((4 * channels, dim)))[0].T.reshape(dim, channels, 1, 2, 2).contiguous()
    identity = torch.eye(dim)
    # Queries and keys that share a bias prefer nearby positions under RoPE: attention then averages neighbours,
    # among them the history's last frames, and one chunk follows from the other.
    locality = 1.5 * normal((dim,)) * (torch.arange(dim) % 8 < 4)  # an axis's two fastest frequencies

    def fill(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.startswith("patch_") and name.endswith("weight"):
            scale = shape[2]
            blown_up = basis
            for axis in (2, 3, 4):
                blown_up = blown_up.repeat_interleave(scale, axis)
            return blown_up / scale**1.5 + normal.matrix(shape, 0.1)
        if name == "proj_out.weight":
            return 0.9 * basis.permute(2, 3, 4, 1, 0).reshape(shape) + normal.matrix(shape, 0.1)
        if name.endswith("scale_shift_table"):
            table = normal(shape, 0.1)
            if shape[1] == 6:
                table[:, 2::3] += 0.5
            return table
        if "norm" in name and name.endswith("weight"):
            return 1.0 + normal(shape, 0.1)
        if name.endswith(("attn1.to_q.bias", "attn1.to_k.bias")):
            return locality + normal(shape, 0.1)
        if name.endswith("attn1.to_v.weight"):
            return identity + normal.matrix(shape, 0.3)
        if name.endswith("attn1.to_out.0.weight"):
            return -identity + normal.matrix(shape, 0.3)
        if name.endswith("bias"):
            return normal(shape, 0.05)
        if "attn2.to_out" in name:
            return normal.matrix(shape, 0.5)
        if "time_proj" in name:
            return normal.matrix(shape, 0.3)
        return normal.matrix(shape, 1.0 if "ffn" not in name else 0.6)

    return {name: fill(name, shape) for name, shape in transformer_shapes(config).items()}


def _vae_tensors(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    normal = _Normal(seed)
    mean, std = torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])
    binomial = torch.tensor([0.25, 0.5, 0.25])
    blur = torch.outer(binomial, binomial)
    causal = torch.tensor([0.1, 0.2, 0.7])  # oldest frame first

    def smooth(shape: tuple[int, ...], gain: float) -> Tensor:
        mix = normal(shape[:2], gain / math.sqrt(shape[1]))
        if shape[1] > 3:  # SiLU's positive mean would otherwise grow into one grey level
            mix = mix - mix.mean(1, keepdim=True)
        kernel = blur if len(shape) == 4 else causal[:, None, None] * blur
        return mix.reshape(*shape[:2], *([1] * kernel.ndim)) * kernel

    def time_conv(shape: tuple[int, ...]) -> Tensor:
        out, inner = shape[:2]
        weight = normal.matrix(shape, 0.1)
        taps = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]] if out > inner else [[0.25, 0.5, 0.25]])
        for i, tap in enumerate(taps):
            weight[i * inner : (i + 1) * inner, :, :, 0, 0] += torch.eye(inner)[:, :, None] * tap
        return weight

    def fill(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("gamma"):
            return 1.0 + normal(shape, 0.1)
        if name == "quant_conv.bias":  # the posterior's log variance: a standard deviation of about 0.05
            return torch.cat([mean, torch.full_like(mean, -6.0)])
        if name == "quant_conv.weight":
            return normal.matrix(shape) * torch.cat([2.5 * std, torch.full_like(std, 0.1)]).reshape(-1, 1, 1, 1, 1)
        if name == "post_quant_conv.weight":
            return torch.diag(1 / std).reshape(shape)
        if name == "post_quant_conv.bias":
            return -mean / std
        if name.endswith("bias"):
            return normal(shape, 0.1)
        if "time_conv" in name:
            return time_conv(shape)
        if shape[-1] == 1:
            return normal.matrix(shape, 0.5 if "attentions" in name else 1.0)
        if name == "decoder.conv_out.weight":
            return smooth(shape, 0.7)
        return smooth(shape, 2.0 if "conv_in" in name else 1.0)

    return {name: fill(name, shape) for name, shape in vae_shapes(config["base_dim"]).items()}


def _text_encoder_tensors(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    normal = _Normal(seed)

    def fill(name: str, shape: tuple[int, ...]) -> Tensor:
        if "norm" in name:
            return 1.0 + normal(shape, 0.1)
        if name == "shared.weight" or "relative_attention_bias" in name:
            return normal(shape)
        # T5 attention has no 1/sqrt(d): the query's scale stands for it.
        return normal.matrix(shape, config["d_kv"] ** -0.5 if name.endswith("q.weight") else 1.0)

    return {name: fill(name, shape) for name, shape in text_encoder_shapes(config).items()}


# ------------------------------------------------------------------------------------------------------ tokenizer

_SENTENCES = """
A quiet lake lies under a violet sky while the first stars appear above the hills.
The red boat drifts past the old wooden pier, and gulls circle slowly overhead.
She walks through the rain with a bright umbrella, smiling at the busy street.
A close-up shot of a cat sleeping on a warm windowsill in the morning light.
Two children run along the beach, chasing a yellow kite against strong wind.
The camera pans across a green valley where sheep graze near a stone wall.
An old man repairs a clock at his desk; dust floats in a golden beam of sun.
Neon signs glow over a crowded market, and steam rises from bowls of noodles.
A train crosses a high bridge in the fog, its windows shining one by one.
Waves break on black rocks, throwing white spray into the cold evening air.
The astronaut floats beside a silver ship, looking down at a blue planet.
A chef cuts fresh vegetables with quick, precise movements in a small kitchen.
Snow falls on a silent forest, covering every branch and every narrow path.
A jazz band plays on stage while couples dance beneath hanging lamps.
The dog jumps over a fence, catches the ball and brings it back, tail wagging.
A drone shot follows a winding road between orange trees in late autumn.
Tropical fish swim gracefully among colorful corals in clear turquoise water.
A vintage car waits at the corner, reflecting the pink clouds of the sunset.
The dancer turns slowly, her long dress drawing a circle of silk around her.
Lightning flashes behind a castle, and heavy drops begin to strike the glass.
A wide view of a desert at noon: dunes, heat, and a caravan on the horizon.
The painter mixes deep blue with gray, then adds a single stroke of white.
Time-lapse footage of flowers opening in spring, detailed and realistic.
A robot waters plants inside a glass house, moving with gentle care.
Static, blurred details, low quality, overexposed, worst quality, ugly, still picture.
""".strip().splitlines()


def _spiece_model(vocab_size: int) -> bytes:
    try:
        import sentencepiece
    except ImportError as missing:
        raise HeliosError(
            "sentencepiece is not installed, which helios-tiny's tokenizer is made with: "
            'run pip install "helios-comfyui[headless]".'
        ) from missing
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()


def _tokenizer_json(spiece_model: bytes) -> dict[str, Any]:
    """The same tokenizer in the format of the tokenizers library."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=spiece_model)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    eos = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": pieces.id_to_piece(i), **special} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, eos],
            "pair": [first, eos, second, eos],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[pieces.id_to_piece(i), pieces.get_score(i)] for i in range(pieces.get_piece_size())],
            "byte_fallback": False,
        },
    }


_SPECIAL_TOKENS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    **_SPECIAL_TOKENS,
    "extra_ids": 0,
    "additional_special_tokens": [],
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
}


def _model_index(variant: str, seed: int) -> dict[str, Any]:
    released = VARIANTS[variant]
    index: dict[str, Any] = {
        "_class_name": released.pipeline_class,
        "_diffusers_version": "0.42.1",
        "_helios_tiny": {"format": FORMAT, "variant": variant, "seed": seed},
    }
    if released != BASE:
        index |= {"is_cfg_zero_star": released.zero_star, "is_distilled": released == DISTILLED}
    return index | {
        "scheduler": ["diffusers", released.scheduler["_class_name"]],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # transformers refuses a file whose metadata does not name the framework.
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def _save_sharded(tensors: dict[str, Tensor], folder: Path) -> None:
    """Two shards, split at the middle of the name list, with the index that the released folder has."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors"
        _save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _dump(index, folder / "diffusion_pytorch_model.safetensors.index.json")


def _dump(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _write(folder: Path, variant: str, seed: int) -> None:
    for part in ("transformer", "scheduler", "vae", "text_encoder", "tokenizer"):
        (folder / part).mkdir(parents=True)
    (folder / "README.txt").write_text(README, encoding="utf-8", newline="\n")
    _dump(_model_index(variant, seed), folder / "model_index.json")
    _dump(dict(VARIANTS[variant].scheduler), folder / "scheduler" / "scheduler_config.json")

    spiece_model = _spiece_model(TEXT_CONFIG["vocab_size"])
    (folder / "tokenizer" / "spiece.model").write_bytes(spiece_model)
    _dump(_tokenizer_json(spiece_model), folder / "tokenizer" / "tokenizer.json")
    _dump(_TOKENIZER_CONFIG, folder / "tokenizer" / "tokenizer_config.json")
    _dump(_SPECIAL_TOKENS, folder / "tokenizer" / "special_tokens_map.json")

    _dump(TRANSFORMER_CONFIG, folder / "transformer" / "config.json")
    transformer_seed = 8 * seed + 3 + list(VARIANTS).index(variant)
    _save_sharded(_transformer_tensors(TRANSFORMER_CONFIG, transformer_seed), folder / "transformer")
    _dump(VAE_CONFIG, folder / "vae" / "config.json")
    _save(_vae_tensors(VAE_CONFIG, 8 * seed + 2), folder / "vae" / "diffusion_pytorch_model.safetensors")
    _dump(TEXT_CONFIG, folder / "text_encoder" / "config.json")
    _save(_text_encoder_tensors(TEXT_CONFIG, 8 * seed + 1), folder / "text_encoder" / "model.safetensors")


def _marker(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_helios_tiny")
    except (OSError, ValueError, AttributeError):
        return None


def is_tiny(folder: Path | str) -> bool:
    """Whether this pipeline folder was written by write_tiny."""
    return _marker(Path(folder)) is not None


def write_tiny(folder: Path | str, variant: str = DEFAULT.name, seed: int = 0) -> Path:
    """Write helios-tiny to `folder` unless it is there already, and return the folder.

    The same variant and seed give the same bytes. The folder appears complete or not at all.
    HeliosError: an unknown variant, or a `folder` that holds anything but this variant and seed.
    """
    folder = Path(folder)
    if variant not in VARIANTS:
        raise HeliosError(f"variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _existing(folder, variant, seed)
    unfinished = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        _write(unfinished, variant, seed)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _existing(folder: Path, variant: str, seed: int) -> Path:
    wanted = {"format": FORMAT, "variant": variant, "seed": seed}
    found = _marker(folder)
    if found != wanted:
        what = "is not a helios-tiny checkpoint" if found is None else f"holds another helios-tiny ({found})"
        raise HeliosError(f"folder {folder} {what}: delete it or choose a folder that does not exist yet.")
    return folder
