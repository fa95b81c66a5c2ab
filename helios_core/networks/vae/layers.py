"""Layers of the Wan 2.1 VAE, with native Wan parameter names.

Tensors are [B, C, T, H, W] in channels-last memory, so channels are contiguous for the norms and frames
fold into the batch without a copy.

A sequence may be cut into passes over time. What a layer has to remember from one pass to the next lies
in a `Carry`: the caller makes an empty one per sequence and hands it to every pass, or hands None when
the whole sequence is a single pass.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Carry = dict[nn.Module, Tensor]

CONTEXT = 2  # frames in front of the current one that a causal convolution sees
# Up to so many channels x frames x rows of a single sample torch convolves on a CPU by a reference kernel, ten times as
# slow in float32; bfloat16 has a kernel of its own (`use_mkldnn` in ATen's Convolution.cpp).
SLOW_IN_3D = 20480


class CausalConv3d(nn.Conv3d):
    """Convolution over the current frame and the two before it; zeros stand before the first frame.

    The input is a buffer that already holds the two context frames (see `new_input`), so that whatever
    computes the frames writes them in place and no padded copy is made.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial: int = 3, **factory: Any) -> None:
        kernel, padding = (1 + CONTEXT, spatial, spatial), (0, spatial // 2, spatial // 2)
        super().__init__(in_channels, out_channels, kernel, padding=padding, **factory)

    def new_input(self, like: Tensor, carry: Carry | None) -> Tensor:
        """Buffer [B, C, 2+T, H, W] for the frames `like` [B, *, T, H, W]: context filled, rest unset."""
        b, _, t, h, w = like.shape
        buffer = torch.empty(
            (b, self.in_channels, CONTEXT + t, h, w),
            dtype=like.dtype,
            device=like.device,
            memory_format=torch.channels_last_3d,
        )
        buffer[:, :, :CONTEXT] = carry[self] if carry and self in carry else 0.0
        return buffer

    def forward(self, buffer: Tensor, carry: Carry | None) -> Tensor:  # type: ignore[override]
        """Filled buffer [B, C_in, 2+T, H, W] -> [B, C_out, T, H, W]."""
        if carry is not None:
            carry[self] = buffer[:, :, -CONTEXT:].clone()  # a view would keep the whole buffer alive
        return self._in_2d(buffer) if _is_slow_in_3d(buffer) else super().forward(buffer)

    def _in_2d(self, buffer: Tensor) -> Tensor:
        """The same of one sample [1, C_in, 2+T, H, W]: a sum over the three frames that are seen."""
        frames, padding = buffer[0].transpose(0, 1), self.padding[1:]
        count = len(frames) - CONTEXT
        found = F.conv2d(frames[:count], self.weight[:, :, 0], self.bias, padding=padding)
        for seen in range(1, 1 + CONTEXT):
            found += F.conv2d(frames[seen : seen + count], self.weight[:, :, seen], padding=padding)
        return found.transpose(0, 1)[None]


def _is_slow_in_3d(x: Tensor) -> bool:
    small = len(x) == 1 and math.prod(x.shape[1:4]) <= SLOW_IN_3D
    return small and x.device.type == "cpu" and x.dtype != torch.bfloat16


class RMSNorm(nn.Module):
    """Divides by the root mean square over channels, then scales by gamma."""

    def __init__(self, dim: int, trailing_dims: int = 3, **factory: Any) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones((dim,) + (1,) * trailing_dims, **factory))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """[B, C, T, H, W] -> same shape, into `out` where given."""
        # Half precision would overflow or round the sum of squares.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=_at_least_float32(x)).clamp_min_(1e-12)
        out = torch.empty_like(x) if out is None else out
        torch.mul(x, x.shape[1] ** 0.5 / norm, out=out)
        return out.mul_(self.gamma.view(-1, 1, 1, 1))


def norm_silu_conv(norm: RMSNorm, conv: CausalConv3d, x: Tensor, carry: Carry | None) -> Tensor:
    """conv(SiLU(norm(x))): [B, C_in, T, H, W] -> [B, C_out, T, H, W]."""
    buffer = conv.new_input(x, carry)
    F.silu(norm(x, out=buffer[:, :, CONTEXT:]), inplace=True)
    return conv(buffer, carry)


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(in_dim, **factory),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, **factory),
            RMSNorm(out_dim, **factory),
            nn.SiLU(),
            nn.Identity(),  # native Wan has a dropout here, so the second convolution is number 6
            CausalConv3d(out_dim, out_dim, **factory),
        )
        self.shortcut = nn.Conv3d(in_dim, out_dim, 1, **factory) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        """[B, C_in, T, H, W] -> [B, C_out, T, H, W]."""
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        hidden = norm_silu_conv(norm1, conv1, x, carry)  # type: ignore[arg-type]
        hidden = norm_silu_conv(norm2, conv2, hidden, carry)  # type: ignore[arg-type]
        return hidden.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention within each frame."""

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, trailing_dims=2, **factory)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1, **factory)
        self.proj = nn.Conv2d(dim, dim, 1, **factory)

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        """[B, C, T, H, W] -> same shape; frames do not see each other, so `carry` stays as it is."""
        b, c, t, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c)
        q, k, v = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v)
        projected = F.linear(attended, self.proj.weight.flatten(1), self.proj.bias)
        return x + projected.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)


class Downsample(nn.Module):
    """Halves height and width and, where `temporal`, the frames after the first."""

    def __init__(self, dim: int, temporal: bool, **factory: Any) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(dim, dim, 3, stride=2, **factory))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1), **factory) if temporal else None

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T', H/2, W/2].

        Temporal: T' is 1 + (T-1)/2 in a sequence's first pass and T/2 in later ones. The first frame
        passes unchanged; every later output sees the two frames it replaces and the one before them.
        """
        x = _per_frame(self.resample, F.pad(x, (0, 1, 0, 1)))
        if self.time_conv is None:
            return x
        before = carry.get(self.time_conv) if carry is not None else None
        if carry is not None:
            carry[self.time_conv] = x[:, :, -1:].clone()
        if before is not None:
            return self.time_conv(torch.cat([before, x], dim=2))
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Doubles height and width, halves the channels; where `temporal`, doubles the frames after the first."""

    def __init__(self, dim: int, temporal: bool, **factory: Any) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(dim, dim // 2, 3, padding=1, **factory))
        self.time_conv = CausalConv3d(dim, dim * 2, spatial=1, **factory) if temporal else None

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        """[B, C, T, H, W] -> [B, C/2, T', 2H, 2W].

        Temporal: T' is 1 + 2(T-1) in a sequence's first pass and 2T in later ones.
        """
        if self.time_conv is not None:
            x = self._double_frames(self.time_conv, x, carry)
        return _per_frame(self._double_size, x)

    @staticmethod
    def _double_frames(time_conv: CausalConv3d, x: Tensor, carry: Carry | None) -> Tensor:
        # The first frame of a sequence is not doubled, and the convolution does not see it either: for
        # the second frame zeros stand in its place.
        first_pass = not carry or time_conv not in carry
        undoubled, x = (x[:, :, :1], x[:, :, 1:]) if first_pass else (x[:, :, :0], x)
        b, c, t, h, w = x.shape
        buffer = time_conv.new_input(x, carry)
        buffer[:, :, CONTEXT:] = x
        if t == 0:
            if carry is not None:
                carry[time_conv] = buffer
            return undoubled
        pairs = time_conv(buffer, carry).unflatten(1, (2, c)).permute(0, 3, 1, 4, 5, 2)  # [B,T,2,H,W,C]
        doubled = pairs.reshape(b, 2 * t, h, w, c).permute(0, 4, 1, 2, 3)
        return torch.cat([undoubled, doubled], dim=2) if first_pass else doubled

    def _double_size(self, x: Tensor) -> Tensor:
        """Nearest upsampling, then the 3x3 convolution, [N, C, h, w] -> [N, C/2, 2h, 2w].

        After nearest upsampling an output pixel's 3x3 window covers only 2x2 different pixels, so each
        of the four output phases is a 2x2 convolution of the small image: 4/9 of the multiplications,
        and the upsampled tensor never exists.
        """
        conv = cast(nn.Conv2d, self.resample[1])
        n, _, h, w = x.shape
        weight = _phase_taps(_phase_taps(conv.weight.to(_at_least_float32(x)), dim=2), dim=4)
        weight = weight.flatten(0, 2).to(x.dtype)  # [2(x), 2(y), C/2, C, 2, 2] before flattening
        phases = F.conv2d(x, weight, cast(Tensor, conv.bias).repeat(4), padding=1).unflatten(1, (2, 2, -1))
        out = torch.empty(
            (n, conv.out_channels, 2 * h, 2 * w),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        for dy in (0, 1):
            for dx in (0, 1):
                out[:, :, dy::2, dx::2] = phases[:, dx, dy, :, dy : dy + h, dx : dx + w]
        return out


def _phase_taps(weight: Tensor, dim: int) -> Tensor:
    """Three taps along `dim` -> [2, ..., 2 taps, ...]: for even outputs, then for odd ones."""
    first, middle, last = weight.unbind(dim)
    even = torch.stack([first, middle + last], dim)
    odd = torch.stack([first + middle, last], dim)
    return torch.stack([even, odd])


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an image layer to every frame of [B, C, T, H, W]."""
    b, t = x.shape[0], x.shape[2]
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, t)).transpose(1, 2)
