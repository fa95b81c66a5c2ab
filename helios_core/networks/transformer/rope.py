"""Rotary positions: three axes, fixed frame positions, pooled tables for compressed history.

A table is float32 ``[L, D/2, 2]``: cosine and sine for each pair of neighbouring channels. Pooled entries
are averages of cosines and of sines, so they are shorter than unit length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ANCHOR_POSITION = 0
LONG_POSITIONS = range(1, 17)
MID_POSITIONS = range(17, 19)
SHORT_POSITION = 19
NOISY_START = 20


def axis_table(positions: Tensor, dim: int, theta: float) -> Tensor:
    """positions [...] float32 -> cosine and sine [..., dim/2, 2]."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    angles = positions.unsqueeze(-1) * (1.0 / theta**exponents)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def grid_table(frames: Tensor, height: int, width: int, rope_dim: tuple[int, int, int], theta: float) -> Tensor:
    """Frame positions [T] and a token grid -> [T, height, width, D/2, 2]."""
    count, device = len(frames), frames.device
    t = axis_table(frames.float(), rope_dim[0], theta)[:, None, None]
    y = axis_table(torch.arange(height, dtype=torch.float32, device=device), rope_dim[1], theta)[None, :, None]
    x = axis_table(torch.arange(width, dtype=torch.float32, device=device), rope_dim[2], theta)[None, None]
    return torch.cat([part.expand(count, height, width, -1, -1) for part in (t, y, x)], dim=-2)


def noisy_table(
    frames: int,
    height: int,
    width: int,
    rope_dim: tuple[int, int, int],
    theta: float,
    start: int,
    device: torch.device | None = None,
) -> Tensor:
    """Positions of a chunk's noisy tokens: [T*height*width, D/2, 2]; coarse stages use grid 0..h-1, unscaled."""
    positions = torch.arange(start, start + frames, device=device)
    return grid_table(positions, height, width, rope_dim, theta).flatten(0, 2)


def history_table(
    height: int,
    width: int,
    rope_dim: tuple[int, int, int],
    theta: float,
    device: torch.device | None = None,
) -> Tensor:
    """Positions of the history tokens, in token order long, mid, short: [L, D/2, 2].

    ``height`` and ``width`` count full-resolution tokens; mid and long pool that grid.
    """

    def grid(positions) -> Tensor:
        return grid_table(torch.tensor(list(positions), device=device), height, width, rope_dim, theta)

    parts = [
        pool_table(grid(LONG_POSITIONS), 4),
        pool_table(grid(MID_POSITIONS), 2),
        grid([ANCHOR_POSITION, SHORT_POSITION]),
    ]
    return torch.cat([part.flatten(0, 2) for part in parts])


class RopeTables:
    """Tables by size; a chain's chunks share them, and one process sees few sizes."""

    def __init__(self, rope_dim: tuple[int, int, int], theta: float, keep: int = 8):
        self._rope_dim, self._theta, self._keep = rope_dim, theta, keep
        self._tables: dict[tuple, Tensor] = {}

    def history(self, height: int, width: int, device: torch.device) -> Tensor:
        """:func:`history_table` for one size."""
        key = ("history", height, width, device)
        return self._get(key, lambda: history_table(height, width, self._rope_dim, self._theta, device))

    def noisy(self, frames: int, height: int, width: int, start: int, device: torch.device) -> Tensor:
        """:func:`noisy_table` for one size."""
        key = ("noisy", frames, height, width, start, device)
        return self._get(key, lambda: noisy_table(frames, height, width, self._rope_dim, self._theta, start, device))

    def held(self) -> list[Tensor]:
        """The tables as they are now, for whoever must keep them alive."""
        return list(self._tables.values())

    def _get(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._tables:
            if len(self._tables) >= self._keep:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = make()
        return self._tables[key]


def pool_table(table: Tensor, factor: int) -> Tensor:
    """[T,H,W,D/2,2] -> every axis pooled by ``factor`` after replicate padding."""
    channels_first = table.flatten(3).permute(3, 0, 1, 2).unsqueeze(0)
    pooled = F.avg_pool3d(pad_to_multiple(channels_first, (factor,) * 3), factor, stride=factor)
    return pooled.squeeze(0).permute(1, 2, 3, 0).unflatten(-1, (-1, 2))


def pad_to_multiple(x: Tensor, multiple: tuple[int, int, int]) -> Tensor:
    """Replicate-pads [B,C,T,H,W] at the end of each axis up to a multiple."""
    t, h, w = ((m - size % m) % m for size, m in zip(x.shape[2:], multiple, strict=True))
    if not (t or h or w):
        return x
    return F.pad(x, (0, w, 0, h, 0, t), mode="replicate")
