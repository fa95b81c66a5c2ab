"""Tensor names and shapes of a Helios checkpoint's parts, from their configurations."""

import math
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def transformer_shapes(config: dict[str, Any]) -> Shapes:
    """Tensor names (diffusers) and shapes of a Helios transformer with this configuration."""
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    patch = tuple(config["patch_size"])
    shapes: Shapes = {}

    def linear(name: str, out: int, inner: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inner), (out,)

    for name, scale in (("patch_embedding", 1), ("patch_short", 1), ("patch_mid", 2), ("patch_long", 4)):
        shapes[f"{name}.weight"] = (dim, config["in_channels"], *(scale * p for p in patch))
        shapes[f"{name}.bias"] = (dim,)
    for name, inner in (("time_embedder", config["freq_dim"]), ("text_embedder", config["text_dim"])):
        linear(f"condition_embedder.{name}.linear_1", dim, inner)
        linear(f"condition_embedder.{name}.linear_2", dim, dim)
    linear("condition_embedder.time_proj", 6 * dim, dim)
    for i in range(config["num_layers"]):
        block = f"blocks.{i}"
        shapes[f"{block}.scale_shift_table"] = (1, 6, dim)
        for attention in (f"{block}.attn1", f"{block}.attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{attention}.{projection}", dim, dim)
            shapes[f"{attention}.norm_q.weight"] = shapes[f"{attention}.norm_k.weight"] = (dim,)
        shapes[f"{block}.norm2.weight"] = shapes[f"{block}.norm2.bias"] = (dim,)
        linear(f"{block}.ffn.net.0.proj", config["ffn_dim"], dim)
        linear(f"{block}.ffn.net.2", dim, config["ffn_dim"])
    shapes["norm_out.scale_shift_table"] = (1, 2, dim)
    linear("proj_out", config["out_channels"] * math.prod(patch), dim)
    return shapes


def vae_shapes(base_dim: int) -> Shapes:
    """Tensor names (diffusers AutoencoderKLWan) and shapes of a Wan 2.1 VAE of this width."""
    shapes: Shapes = {}
    widths = [base_dim * m for m in (1, 1, 2, 4, 4)]
    wide, latent = widths[-1], 16

    def conv(name: str, out: int, inner: int, *kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inner, *kernel), (out,)

    def resnet(name: str, inner: int, out: int) -> None:
        for i, width in ((1, inner), (2, out)):
            shapes[f"{name}.norm{i}.gamma"] = (width, 1, 1, 1)
            conv(f"{name}.conv{i}", out, width, 3, 3, 3)
        if inner != out:
            conv(f"{name}.conv_shortcut", out, inner, 1, 1, 1)

    def ends(name: str, inner: int, first: int, last: int, out: int) -> None:
        conv(f"{name}.conv_in", first, inner, 3, 3, 3)
        resnet(f"{name}.mid_block.resnets.0", wide, wide)
        resnet(f"{name}.mid_block.resnets.1", wide, wide)
        shapes[f"{name}.mid_block.attentions.0.norm.gamma"] = (wide, 1, 1)
        conv(f"{name}.mid_block.attentions.0.to_qkv", 3 * wide, wide, 1, 1)
        conv(f"{name}.mid_block.attentions.0.proj", wide, wide, 1, 1)
        shapes[f"{name}.norm_out.gamma"] = (last, 1, 1, 1)
        conv(f"{name}.conv_out", out, last, 3, 3, 3)

    ends("encoder", 3, base_dim, wide, 2 * latent)
    position = 0
    for level in range(4):
        for inner in (widths[level], widths[level + 1]):
            resnet(f"encoder.down_blocks.{position}", inner, widths[level + 1])
            position += 1
        if level < 3:
            width = widths[level + 1]
            conv(f"encoder.down_blocks.{position}.resample.1", width, width, 3, 3)
            if level > 0:
                conv(f"encoder.down_blocks.{position}.time_conv", width, width, 3, 1, 1)
            position += 1
    conv("quant_conv", 2 * latent, 2 * latent, 1, 1, 1)
    conv("post_quant_conv", latent, latent, 1, 1, 1)

    ends("decoder", latent, wide, base_dim, 3)
    inner = wide
    for level, width in enumerate(reversed(widths[1:])):
        up = f"decoder.up_blocks.{level}"
        for i in range(3):
            resnet(f"{up}.resnets.{i}", inner if i == 0 else width, width)
        if level < 3:
            inner = width // 2
            conv(f"{up}.upsamplers.0.resample.1", inner, width, 3, 3)
            if level < 2:
                conv(f"{up}.upsamplers.0.time_conv", 2 * width, width, 3, 1, 1)
    return shapes


def text_encoder_shapes(config: dict[str, Any]) -> Shapes:
    """Tensor names (transformers UMT5EncoderModel) and shapes of a UMT5 encoder with this configuration."""
    dim, hidden, inner = config["d_model"], config["d_ff"], config["num_heads"] * config["d_kv"]
    shapes: Shapes = {"shared.weight": (config["vocab_size"], dim), "encoder.final_layer_norm.weight": (dim,)}
    for i in range(config["num_layers"]):
        attention, feed = (f"encoder.block.{i}.layer.{j}" for j in (0, 1))
        for projection in "qkv":
            shapes[f"{attention}.SelfAttention.{projection}.weight"] = (inner, dim)
        shapes[f"{attention}.SelfAttention.o.weight"] = (dim, inner)
        buckets = (config["relative_attention_num_buckets"], config["num_heads"])
        shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = buckets
        shapes[f"{feed}.DenseReluDense.wi_0.weight"] = (hidden, dim)
        shapes[f"{feed}.DenseReluDense.wi_1.weight"] = (hidden, dim)
        shapes[f"{feed}.DenseReluDense.wo.weight"] = (dim, hidden)
        shapes[f"{attention}.layer_norm.weight"] = shapes[f"{feed}.layer_norm.weight"] = (dim,)
    return shapes
