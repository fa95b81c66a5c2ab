"""A small Wan 2.1 VAE, trained on the world.

``helios_core.vae`` computes in place and without gradients; here the same modules are walked with operators that
autograd records (a test compares both). The loss is |x - x'| plus a little of its square and of the divergence from a
normal distribution (Wan, arXiv 2503.20314, section 4.1, without the perceptual and adversarial terms, which flat
shading does not need).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helios_core.networks.vae import VAEConfig, WanVAE

from .trainer import StepRandom, Task
from .world import draw_scene, render

CROP, FRAMES, HEIGHT, WIDTH = 64, 9, 64, 128
# Lean training: at the large sizes few blocks, which see one frame each.
SKIPPED_ENCODER, LEAN_ENCODER = (0, 1, 4, 7), (3, 6)
SKIPPED_DECODER, LEAN_DECODER = (6, 10, 13, 14), (5, 8, 9, 12)
SQUARE_WEIGHT, DIVERGENCE_WEIGHT = 2.0, 2e-4


def encode(vae: WanVAE, video: Tensor, lean: bool = False) -> tuple[Tensor, Tensor]:
    """Video [B,3,1+4k,H,W] in -1..1 -> mean and log variance [B,16,1+k,H/8,W/8], with gradients.

    ``lean`` leaves out what :func:`make_lean` set to zero: the same result for a fifth of the work.
    """
    encoder, flat = vae.encoder, LEAN_ENCODER if lean else ()
    x = _causal(encoder.conv1, video, lean)
    for index, layer in enumerate(encoder.downsamples):
        if lean and index in SKIPPED_ENCODER:
            continue
        x = _layer(layer, x, index in flat)
    for layer in encoder.middle:
        x = _layer(layer, x)
    mean, log_variance = vae.conv1(_norm_silu_conv(encoder.head[0], encoder.head[2], x)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode(vae: WanVAE, latents: Tensor, lean: bool = False) -> Tensor:
    """Latents [B,16,n,h,w] in VAE space -> video [B,3,4n-3,8h,8w], unclamped, with gradients."""
    decoder, flat = vae.decoder, LEAN_DECODER if lean else ()
    x = _causal(decoder.conv1, vae.conv2(latents))
    for layer in decoder.middle:
        x = _layer(layer, x)
    for index, layer in enumerate(decoder.upsamples):
        if lean and index in SKIPPED_DECODER:
            continue
        x = _layer(layer, x, index in flat)
    return _norm_silu_conv(decoder.head[0], decoder.head[2], x, lean)


def make_lean(vae: WanVAE) -> None:
    """Sets to zero what lean training leaves out: whole residual branches, and the taps that look back in time."""
    with torch.no_grad():
        for layers, skipped, flat in (
            (vae.encoder.downsamples, SKIPPED_ENCODER, LEAN_ENCODER),
            (vae.decoder.upsamples, SKIPPED_DECODER, LEAN_DECODER),
        ):
            for index in skipped:
                layers[index].residual[6].weight.zero_()
                layers[index].residual[6].bias.zero_()
            for index in flat:
                for conv in (layers[index].residual[2], layers[index].residual[6]):
                    conv.weight[:, :, :-1] = 0
        for conv in (vae.encoder.conv1, vae.decoder.head[2]):
            conv.weight[:, :, :-1] = 0


def _causal(conv: Any, x: Tensor, flat: bool = False) -> Tensor:
    if flat:
        return _per_frame(lambda y: F.conv2d(y, conv.weight[:, :, -1], conv.bias, padding=1), x)
    return F.conv3d(F.pad(x, (0, 0, 0, 0, 2, 0)), conv.weight, conv.bias, padding=conv.padding)


def _norm(norm: Any, x: Tensor) -> Tensor:
    # Unlike F.normalize, one product with the full tensor for each factor.
    return x * (x.square().mean(1, keepdim=True) + 1e-12).rsqrt() * norm.gamma.view(-1, 1, 1, 1)


def _norm_silu_conv(norm: Any, conv: Any, x: Tensor, flat: bool = False) -> Tensor:
    return _causal(conv, F.silu(_norm(norm, x)), flat)


def _layer(layer: Any, x: Tensor, flat: bool = False) -> Tensor:
    kind = type(layer).__name__
    if kind == "ResidualBlock":
        return _residual(layer, x, flat)
    return {"AttentionBlock": _attention, "Downsample": _downsample, "Upsample": _upsample}[kind](layer, x)


def _residual(block: Any, x: Tensor, flat: bool) -> Tensor:
    norm1, _, conv1, norm2, _, _, conv2 = block.residual
    return block.shortcut(x) + _norm_silu_conv(norm2, conv2, _norm_silu_conv(norm1, conv1, x, flat), flat)


def _attention(block: Any, x: Tensor) -> Tensor:
    b, c, t, h, w = x.shape
    tokens = _norm(block.norm, x).permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c)
    q, k, v = F.linear(tokens, block.to_qkv.weight.flatten(1), block.to_qkv.bias).chunk(3, dim=-1)
    attended = F.scaled_dot_product_attention(q, k, v)
    projected = F.linear(attended, block.proj.weight.flatten(1), block.proj.bias)
    return x + projected.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)


def _per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    b, t = x.shape[0], x.shape[2]
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, t)).transpose(1, 2)


def _downsample(layer: Any, x: Tensor) -> Tensor:
    x = _per_frame(layer.resample[1], F.pad(x, (0, 1, 0, 1)))
    if layer.time_conv is None or x.shape[2] == 1:
        return x
    return torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)


def _upsample(layer: Any, x: Tensor) -> Tensor:
    if layer.time_conv is not None and x.shape[2] > 1:
        pairs = _causal(layer.time_conv, x[:, :, 1:]).unflatten(1, (2, -1))  # [B,2,C,T,H,W]
        x = torch.cat([x[:, :, :1], pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    return _per_frame(lambda y: layer.resample[1](F.interpolate(y, scale_factor=2.0, mode="nearest")), x)


# ------------------------------------------------------------------------------------------------------- training


def new_vae(base_dim: int, seed: int = 0) -> WanVAE:
    """Weights for training: every frame is treated alone and every residual branch adds nothing, to begin with.

    So what is learned from pictures holds for clips that stand still, and motion is learned on top of it.
    """
    torch.manual_seed(seed)
    vae = WanVAE(VAEConfig(base_dim=base_dim))
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight[:, :, -1:] if module.weight.ndim == 5 else module.weight, 1.0)
                module.weight.mul_(2**-0.5)
                nn.init.zeros_(module.bias)
                if module.weight.ndim == 5 and module.weight.shape[2] > 1:
                    module.weight[:, :, :-1] = 0
        for module in vae.modules():
            if type(module).__name__ == "ResidualBlock":
                module.residual[6].weight.mul_(0.1)
            if getattr(module, "time_conv", None) is not None:
                _copy_frames(module.time_conv)
        vae.conv1.weight[16:].mul_(0.1)
        vae.conv1.bias[16:].fill_(-4.0)
    return vae


def _copy_frames(time_conv: nn.Conv3d) -> None:
    """Halving keeps a pair's last frame, doubling repeats a frame."""
    inner = time_conv.in_channels
    time_conv.weight.zero_()
    for first in range(0, time_conv.out_channels, inner):
        time_conv.weight[first : first + inner, :, -1, 0, 0] = torch.eye(inner)


def crops(random: StepRandom, count: int, frames: int = FRAMES) -> Tensor:
    """Crops of fresh clips, [count,3,frames,64,64] in -1..1."""
    clips = []
    for _ in range(count):
        scene = draw_scene(random.integer(1 << 40), WIDTH / HEIGHT)
        clip = render(scene, WIDTH, HEIGHT, random.integer(150), frames)
        left = 8 * random.integer((WIDTH - CROP) // 8 + 1)
        clips.append(torch.from_numpy(clip[:, :, :, left : left + CROP]).transpose(0, 1))
    return torch.stack(clips) * 2 - 1


class VAETask(Task):
    """Reconstruction of crops: ``pictures`` steps of single frames, then short clips."""

    def __init__(self, base_dim: int = 8, batch: int = 2, pictures: int = 1500, lean: bool = True):
        self.vae = new_vae(base_dim)
        self.batch, self.pictures, self.lean = batch, pictures, lean
        if lean:
            make_lean(self.vae)
        for parameter in self.vae.parameters():  # the layout in which a CPU's convolutions are fastest
            if parameter.ndim > 3:
                layout = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
                parameter.data = parameter.data.contiguous(memory_format=layout)
        super().__init__(self.vae)

    def loss(self, step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        if step < self.pictures:
            video = crops(random, 8 * self.batch, 1)
        else:
            video = crops(random, self.batch, FRAMES + 8 * (step % 4 == 3))
        mean, log_variance = encode(self.vae, video, self.lean)
        std = torch.exp(0.5 * log_variance)
        latents = mean + std * random.normal(mean.shape)
        error = decode(self.vae, latents, self.lean) - video
        square = error.square().mean()
        divergence = 0.5 * (mean.square() + std.square() - 1 - log_variance).mean()
        loss = error.abs().mean() + SQUARE_WEIGHT * square + DIVERGENCE_WEIGHT * divergence
        psnr = -10 * torch.log10(square.detach() / 4)
        return loss, {"psnr": psnr.item(), "std": std.mean().item(), "scale": mean.std().item()}
