"""The Wan 2.1 VAE: 33 frames <-> 9 latent frames as one causal sequence (Wan, arXiv 2503.20314)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import HeliosError
from .config import VAEConfig
from .layers import (
    CONTEXT,
    AttentionBlock,
    Carry,
    CausalConv3d,
    Downsample,
    ResidualBlock,
    RMSNorm,
    Upsample,
    norm_silu_conv,
)

PASS_BYTES = 8 << 30
"""Working memory that a pass may take when the caller does not choose its size."""

# At its peak a pass holds about four tensors of full size and base_dim channels, and the carry.
_PEAK_TENSORS = 5


def _causal_conv(conv: CausalConv3d, x: Tensor, carry: Carry | None) -> Tensor:
    buffer = conv.new_input(x, carry)
    buffer[:, :, CONTEXT:] = x
    return conv(buffer, carry)


def _middle(dim: int, **factory: Any) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(dim, dim, **factory), AttentionBlock(dim, **factory), ResidualBlock(dim, dim, **factory)
    )


def _head(dim: int, out_channels: int, **factory: Any) -> nn.Sequential:
    return nn.Sequential(RMSNorm(dim, **factory), nn.SiLU(), CausalConv3d(dim, out_channels, **factory))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig, **factory: Any) -> None:
        super().__init__()
        dims = [config.base_dim * multiplier for multiplier in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3, dims[0], **factory)
        layers: list[nn.Module] = []
        for level, dim in enumerate(dims[1:]):
            for block in range(config.num_res_blocks):
                layers.append(ResidualBlock(dims[level] if block == 0 else dim, dim, **factory))
            if level < len(config.temporal_downsample):
                layers.append(Downsample(dim, config.temporal_downsample[level], **factory))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(dims[-1], **factory)
        self.head = _head(dims[-1], 2 * config.z_dim, **factory)

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        """Frames [B, 3, F, H, W] of one pass -> [B, 2*z, n, H/8, W/8]."""
        x = _causal_conv(self.conv1, x, carry)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, carry)
        return norm_silu_conv(self.head[0], self.head[2], x, carry)  # type: ignore[arg-type]


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig, **factory: Any) -> None:
        super().__init__()
        dims = [config.base_dim * multiplier for multiplier in reversed(config.dim_mult)]
        self.conv1 = CausalConv3d(config.z_dim, dims[0], **factory)
        self.middle = _middle(dims[0], **factory)
        layers: list[nn.Module] = []
        in_dim = dims[0]
        for level, dim in enumerate(dims):
            for _ in range(config.num_res_blocks + 1):
                layers.append(ResidualBlock(in_dim, dim, **factory))
                in_dim = dim
            if level < len(config.temporal_downsample):
                layers.append(Upsample(dim, config.temporal_downsample[-1 - level], **factory))
                in_dim = dim // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(dims[-1], 3, **factory)

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        """Latents [B, z, n, h, w] of one pass -> frames [B, 3, F, 8h, 8w]."""
        x = _causal_conv(self.conv1, x, carry)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, carry)
        return norm_silu_conv(self.head[0], self.head[2], x, carry)  # type: ignore[arg-type]


class WanVAE(nn.Module):
    """Wan 2.1 VAE with native Wan parameter names. Inference only: no gradients flow.

    Every call of `encode` or `decode` is one causal sequence of its own. A sequence is worked through in
    passes of any number of latents; the result does not depend on where it is cut.
    """

    def __init__(
        self,
        config: VAEConfig | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or VAEConfig()
        self.encoder = Encoder(config, dtype=dtype, device=device)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1, dtype=dtype, device=device)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1, dtype=dtype, device=device)
        self.decoder = Decoder(config, dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    @contextmanager
    def at_work(self, device: torch.device) -> Iterator[None]:
        """On ``device`` for as long as it works; at rest its parameters may be views of its file."""
        resting = [parameter.data for parameter in self.parameters()]
        try:
            self.to(device)
            yield
        finally:
            for parameter, data in zip(self.parameters(), resting, strict=True):
                parameter.data = data

    @torch.no_grad()
    def encode(self, video: Tensor, latents_per_pass: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, in unnormalised VAE space.

        Args:
            video: [B, 3, 1+4k, H, W] in -1..1; H and W divisible by 8.
            latents_per_pass: latents per pass; None lets `pass_size` choose.

        Returns:
            mean and std, each [B, 16, 1+k, H/8, W/8], in the VAE's dtype.
        """
        self._check_video(video)
        time, space = self.config.temporal_factor, self.config.spatial_factor
        b, _, frames, height, width = video.shape
        count = 1 + (frames - 1) // time
        if latents_per_pass is None:
            latents_per_pass = self.pass_size(b, height // space, width // space)
        video = video.to(self.conv1.weight)
        passes = _passes(count, latents_per_pass)
        carry: Carry | None = {} if len(passes) > 1 else None
        moments = []
        for start, stop in passes:
            first_frame = 1 + (start - 1) * time if start else 0
            moments.append(self.encoder(video[:, :, first_frame : 1 + (stop - 1) * time], carry))
        mean, log_variance = self.conv1(torch.cat(moments, dim=2)).chunk(2, dim=1)
        return mean.contiguous(), torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor, latents_per_pass: int | None = None) -> Tensor:
        """Frames of one causal sequence.

        Args:
            latents: [B, 16, n, h, w] in unnormalised VAE space (see `denormalise`).
            latents_per_pass: latents per pass; None lets `pass_size` choose.

        Returns:
            [B, 3, 4(n-1)+1, 8h, 8w] in -1..1, in the VAE's dtype.
        """
        self._check_latents(latents)
        b, _, count, height, width = latents.shape
        if latents_per_pass is None:
            latents_per_pass = self.pass_size(b, height, width)
        latents = self.conv2(latents.to(self.conv2.weight))
        passes = _passes(count, latents_per_pass)
        carry: Carry | None = {} if len(passes) > 1 else None
        video = [self.decoder(latents[:, :, start:stop], carry) for start, stop in passes]
        return torch.cat(video, dim=2).clamp_(-1.0, 1.0).contiguous()

    def normalise(self, latents: Tensor) -> Tensor:
        """VAE space -> model space, [B, 16, n, h, w], with diffusers' arithmetic in the input's dtype."""
        mean, std_inverse = self._statistics(latents)
        return (latents - mean) * std_inverse

    def denormalise(self, latents: Tensor) -> Tensor:
        """Model space -> VAE space, [B, 16, n, h, w], with diffusers' arithmetic in the input's dtype."""
        mean, std_inverse = self._statistics(latents)
        return latents / std_inverse + mean

    def pass_size(self, batch: int, height: int, width: int, budget: int = PASS_BYTES) -> int:
        """Latents of [batch, 16, n, height, width] whose pass fits in ``budget`` bytes, at least one."""
        return max(1, budget // self.latent_bytes(batch, height, width, self.conv2.weight.element_size()))

    def latent_bytes(self, batch: int, height: int, width: int, element_size: int) -> int:
        """Working memory of a pass, for each of its latents."""
        config = self.config
        pixels = batch * height * width * config.spatial_factor**2 * config.temporal_factor
        return pixels * config.base_dim * element_size * _PEAK_TENSORS

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, self.config.z_dim, 1, 1, 1)
        mean = torch.tensor(self.config.latents_mean).view(shape).to(like.device, like.dtype)
        std = torch.tensor(self.config.latents_std).view(shape).to(like.device, like.dtype)
        return mean, 1.0 / std

    def _check_video(self, video: Tensor) -> None:
        time, space = self.config.temporal_factor, self.config.spatial_factor
        shape = list(video.shape)
        if video.ndim != 5 or shape[1] != 3:
            raise HeliosError(f"The video has shape {shape}: give [batch, 3, frames, height, width].")
        if shape[2] < 1 or (shape[2] - 1) % time:
            raise HeliosError(f"The video has {shape[2]} frames: give {time}*k + 1 frames, 33 for one chunk.")
        if shape[3] % space or shape[4] % space or not shape[3] * shape[4]:
            nearest = [max(space, round(size / space) * space) for size in shape[3:]]
            raise HeliosError(
                f"The video has height {shape[3]} and width {shape[4]}: both must be divisible by {space}, "
                f"the nearest are {nearest[0]} and {nearest[1]}."
            )

    def _check_latents(self, latents: Tensor) -> None:
        shape = list(latents.shape)
        if latents.ndim != 5 or shape[1] != self.config.z_dim or 0 in shape:
            raise HeliosError(
                f"The latents have shape {shape}: give [batch, {self.config.z_dim}, latent frames, height/8, width/8]."
            )


def _passes(count: int, size: int) -> list[tuple[int, int]]:
    if size < 1:
        raise HeliosError(f"latents_per_pass is {size}: give at least 1, or None to have it chosen.")
    return [(start, min(start + size, count)) for start in range(0, count, size)]
