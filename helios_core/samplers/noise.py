"""Noise of a chunk: the full-resolution draw, its pyramid, and block noise between stages."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2
# At gamma = 1/3 the block covariance is singular: the exact last pivot is 0, and the reference's float32
# factorisation leaves this rounding residue. With 0 instead, latents end up 5e-4 away from the reference's.
SINGULAR_PIVOT = 1.5 * 2**-23


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal float32 noise on the generator's device, [B,16,9,H/8,W/8] for a chunk."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


def noise_to(noise: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """``noise`` on another device; on its way to CUDA the host does not wait, so the next steps are queued early."""
    if torch.device(device).type != "cuda" or noise.device.type != "cpu":
        return noise.to(device, dtype)
    return noise.pin_memory().to(device, non_blocking=True).to(dtype)


def coarsest(noise: Tensor, stages: int) -> Tensor:
    """[B,C,T,h,w] -> [B,C,T,h/2^(stages-1),w/2^(stages-1)]: bilinear halvings, each times 2 to keep unit variance."""
    batch = noise.shape[0]
    frames = rearrange(noise, "b c t h w -> (b t) c h w")
    for _ in range(stages - 1):
        size = (frames.shape[-2] // 2, frames.shape[-1] // 2)
        frames = F.interpolate(frames, size=size, mode="bilinear") * 2
    return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


def upsampled(latents: Tensor) -> Tensor:
    """[B,C,T,h,w] -> [B,C,T,2h,2w], nearest neighbour."""
    return latents.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def draw_block_noise(shape: tuple[int, ...], gamma: float, generator: torch.Generator) -> Tensor:
    """Noise [B,C,T,h,w] whose 2x2 patches have covariance (1+gamma)I - gamma*J, on the generator's device."""
    batch, channels, frames, height, width = shape
    blocks = batch * channels * frames * (height // BLOCK) * (width // BLOCK)
    drawn = torch.randn(blocks, BLOCK * BLOCK, generator=generator, device=generator.device)
    noise = drawn @ block_noise_factor(gamma).to(drawn.device).T
    return rearrange(
        noise,
        "(b c t h w) (p q) -> b c t (h p) (w q)",
        b=batch,
        c=channels,
        t=frames,
        h=height // BLOCK,
        w=width // BLOCK,
        p=BLOCK,
        q=BLOCK,
    )


def block_noise_factor(gamma: float) -> Tensor:
    """Lower Cholesky factor [4,4] of (1+gamma)I - gamma*J, in closed form, float32."""
    size, a = BLOCK * BLOCK, 1 + gamma
    factor = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        # Eliminating a row of aI - bJ leaves aI - b'J with 1/b' = 1/b - 1/a.
        b = 1 / (1 / gamma - i / a)
        pivot = math.sqrt(max(a - b, SINGULAR_PIVOT))
        factor[i, i] = pivot
        factor[i + 1 :, i] = -b / pivot
    return factor.float()
