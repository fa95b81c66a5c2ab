"""helios-tiny's configurations and random weights, drawn in one fixed order under the networks' own names."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.names import to_diffusers
from ..checkpoint.text import umt5_shapes
from ..checkpoint.vae_names import vae_to_diffusers
from ..networks.transformer import HeliosTransformer, TransformerConfig
from ..networks.vae import VAEConfig, WanVAE

Shape = tuple[int, ...]

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

    def __call__(self, shape: Shape, std: float = 1.0) -> Tensor:
        return std * torch.randn(shape, generator=self._generator)

    def matrix(self, shape: Shape, gain: float = 1.0) -> Tensor:
        """Weights that keep the variance of a white input, times gain squared."""
        return self(shape, gain / math.sqrt(math.prod(shape[1:])))


def _shapes(model: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _filled(shapes: dict[str, Shape], fill: Callable[[str, Shape], Tensor], order: Sequence[str]) -> dict[str, Tensor]:
    """Every name with what ``fill`` draws for it, in the order of the prefixes in ``order``: bytes depend on it."""

    def place(name: str) -> int:
        return next(i for i, prefix in enumerate(order) if name.startswith(prefix))

    return {name: fill(name, shapes[name]) for name in sorted(shapes, key=place)}


def transformer_tensors(seed: int) -> dict[str, Tensor]:
    """The transformer's tensors under the released names."""
    normal = _Normal(seed)
    config = TransformerConfig.from_dict(TRANSFORMER_CONFIG)
    dim, channels = config.dim, config.in_channels
    # Orthonormal rows, so that a white latent becomes a white token and the output head can map it back.
    basis = torch.linalg.qr(normal((4 * channels, dim)))[0].T.reshape(dim, channels, 1, 2, 2).contiguous()
    identity = torch.eye(dim)
    # Queries and keys that share a bias prefer nearby positions under RoPE: attention then averages neighbours,
    # among them the history's last frames, and one chunk follows from the other.
    locality = 1.5 * normal((dim,)) * (torch.arange(dim) % 8 < 4)  # an axis's two fastest frequencies

    def fill(name: str, shape: Shape) -> Tensor:
        if name.startswith("patch_") and name.endswith("weight"):
            scale = shape[2]
            blown_up = basis
            for axis in (2, 3, 4):
                blown_up = blown_up.repeat_interleave(scale, axis)
            return blown_up / scale**1.5 + normal.matrix(shape, 0.1)
        if name == "output.proj.weight":
            return 0.9 * basis.permute(2, 3, 4, 1, 0).reshape(shape) + normal.matrix(shape, 0.1)
        if name.endswith("modulation"):
            table = normal(shape, 0.1)
            if shape[1] == 6:
                table[:, 2::3] += 0.5
            return table
        if "norm" in name and name.endswith("weight"):
            return 1.0 + normal(shape, 0.1)
        if name.endswith(("self_attn.q.bias", "self_attn.k.bias")):
            return locality + normal(shape, 0.1)
        if name.endswith("self_attn.v.weight"):
            return identity + normal.matrix(shape, 0.3)
        if name.endswith("self_attn.o.weight"):
            return -identity + normal.matrix(shape, 0.3)
        if name.endswith("bias"):
            return normal(shape, 0.05)
        if "cross_attn.o." in name:
            return normal.matrix(shape, 0.5)
        if "time_projection" in name:
            return normal.matrix(shape, 0.3)
        return normal.matrix(shape, 1.0 if "ffn" not in name else 0.6)

    shapes = _shapes(HeliosTransformer(**config.to_dict(), device="meta"))
    return to_diffusers(_filled(shapes, fill, ("patch_", "time_embedding.", "text_embedding.", "")))


def vae_tensors(seed: int) -> dict[str, Tensor]:
    """The VAE's tensors under the released names."""
    normal = _Normal(seed)
    mean, std = torch.tensor(LATENTS_MEAN), torch.tensor(LATENTS_STD)
    binomial = torch.tensor([0.25, 0.5, 0.25])
    blur = torch.outer(binomial, binomial)
    causal = torch.tensor([0.1, 0.2, 0.7])  # oldest frame first

    def smooth(shape: Shape, gain: float) -> Tensor:
        mix = normal(shape[:2], gain / math.sqrt(shape[1]))
        if shape[1] > 3:  # SiLU's positive mean would otherwise grow into one grey level
            mix = mix - mix.mean(1, keepdim=True)
        kernel = blur if len(shape) == 4 else causal[:, None, None] * blur
        return mix.reshape(*shape[:2], *([1] * kernel.ndim)) * kernel

    def time_conv(shape: Shape) -> Tensor:
        out, inner = shape[:2]
        weight = normal.matrix(shape, 0.1)
        taps = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]] if out > inner else [[0.25, 0.5, 0.25]])
        for i, tap in enumerate(taps):
            weight[i * inner : (i + 1) * inner, :, :, 0, 0] += torch.eye(inner)[:, :, None] * tap
        return weight

    def fill(name: str, shape: Shape) -> Tensor:
        if name.endswith("gamma"):
            return 1.0 + normal(shape, 0.1)
        if name == "conv1.bias":  # the posterior's log variance: a standard deviation of about 0.05
            return torch.cat([mean, torch.full_like(mean, -6.0)])
        if name == "conv1.weight":
            return normal.matrix(shape) * torch.cat([2.5 * std, torch.full_like(std, 0.1)]).reshape(-1, 1, 1, 1, 1)
        if name == "conv2.weight":
            return torch.diag(1 / std).reshape(shape)
        if name == "conv2.bias":
            return -mean / std
        if name.endswith("bias"):
            return normal(shape, 0.1)
        if "time_conv" in name:
            return time_conv(shape)
        if shape[-1] == 1:
            return normal.matrix(shape, 0.5 if ".middle.1." in name else 1.0)
        if name == "decoder.head.2.weight":
            return smooth(shape, 0.7)
        return smooth(shape, 2.0 if ".conv1." in name else 1.0)

    halves = [[f"{half}.{part}" for part in ("conv1.", "middle.0.", "middle.2.", "middle.1.", "head.", "")]
              for half in ("encoder", "decoder")]  # fmt: skip
    shapes = _shapes(WanVAE(VAEConfig.from_diffusers(VAE_CONFIG), device="meta"))
    return vae_to_diffusers(_filled(shapes, fill, (*halves[0], "conv1.", "conv2.", *halves[1])))


def text_encoder_tensors(seed: int) -> dict[str, Tensor]:
    """The text encoder's tensors."""
    normal = _Normal(seed)

    def fill(name: str, shape: Shape) -> Tensor:
        if "norm" in name:
            return 1.0 + normal(shape, 0.1)
        if name == "shared.weight" or "relative_attention_bias" in name:
            return normal(shape)
        # T5 attention has no 1/sqrt(d): the query's scale stands for it.
        return normal.matrix(shape, TEXT_CONFIG["d_kv"] ** -0.5 if name.endswith("q.weight") else 1.0)

    blocks = [f"encoder.block.{i}.{part}" for i in range(TEXT_CONFIG["num_layers"])
              for part in ("layer.0.Self", "layer.1.Dense", "")]  # fmt: skip
    shapes = umt5_shapes(TEXT_CONFIG, "helios-tiny's configuration")
    return _filled(shapes, fill, ("shared.", "encoder.final_layer_norm.", *blocks))
