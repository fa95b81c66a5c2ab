"""Numbers packed 32 to a block, as GGUF files have them: to floats and back, on any device.

A block is a scale d (float16), in the forms with a minimum m (float16), then 32 whole numbers q; it stands for d*q,
d*(q - 2**(bits-1)) or d*q + m. Source: ggml's block_q8_0, block_q5_1, block_q5_0, block_q4_1 and block_q4_0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32
# Numbers that are floats at a time: 64 MiB of float32, whatever the matrix.
_SLAB = 1 << 24


@dataclass(frozen=True)
class Form:
    """One of GGUF's types: ``number`` is its own, ``bits`` those of a whole number."""

    name: str
    number: int
    bits: int
    has_minimum: bool = False

    @property
    def nbytes(self) -> int:
        """Of a block."""
        return 2 + 2 * self.has_minimum + BLOCK * self.bits // 8

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Numbers [...,n] -> their bytes [...,n/32*nbytes]."""
        return (*shape[:-1], shape[-1] // BLOCK * self.nbytes)

    def shape(self, packed: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of :meth:`packed_shape`."""
        return (*packed[:-1], packed[-1] // self.nbytes * BLOCK)


FORMS = {
    form.name: form
    for form in (
        Form("q8_0", 8, 8),
        Form("q5_1", 7, 5, has_minimum=True),
        Form("q5_0", 6, 5),
        Form("q4_1", 3, 4, has_minimum=True),
        Form("q4_0", 2, 4),
    )
}


def unpack(form: Form, packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [...,bytes] -> [...,n] of ``dtype``; the arithmetic is float32."""
    blocks = packed.reshape(-1, form.nbytes)
    out = torch.empty(len(blocks), BLOCK, dtype=dtype, device=packed.device)
    step = _SLAB // BLOCK
    for first in range(0, len(blocks), step):
        out[first : first + step] = _floats(form, blocks[first : first + step])
    return out.reshape(form.shape(tuple(packed.shape)))


def _floats(form: Form, blocks: Tensor) -> Tensor:
    head = 2 + 2 * form.has_minimum
    scales = blocks[:, :head].contiguous().view(torch.float16).float()
    if form.bits == 8:
        return scales[:, :1] * blocks[:, head:].view(torch.int8)
    nibbles = blocks[:, -BLOCK // 2 :]
    whole = torch.cat([nibbles & 0x0F, nibbles >> 4], dim=1).to(torch.int8)
    if form.bits == 5:
        places = torch.arange(8, dtype=torch.uint8, device=blocks.device)
        high = (blocks[:, head : head + 4, None] >> places) & 1
        whole = whole + 16 * high.flatten(1).to(torch.int8)
    if form.has_minimum:
        return scales[:, :1] * whole + scales[:, 1:]
    return scales[:, :1] * (whole - 2 ** (form.bits - 1))


def pack(form: Form, numbers: Tensor, seed: int | None = None) -> Tensor:
    """[...,n], n in whole blocks -> uint8 [...,bytes], rounded as ggml rounds, or with ``seed`` by chance.

    Rounding by chance keeps the mean of a change that is smaller than a step.
    """
    blocks = numbers.reshape(-1, BLOCK)
    out = torch.empty(len(blocks), form.nbytes, dtype=torch.uint8, device=numbers.device)
    chance = None if seed is None else torch.Generator(numbers.device).manual_seed(seed)
    step = _SLAB // BLOCK
    for first in range(0, len(blocks), step):
        out[first : first + step] = _bytes(form, blocks[first : first + step].float(), chance)
    return out.reshape(form.packed_shape(tuple(numbers.shape)))


def _bytes(form: Form, blocks: Tensor, chance: torch.Generator | None) -> Tensor:
    levels = 2**form.bits - 1
    if form.has_minimum:
        low, high = blocks.aminmax(dim=1, keepdim=True)
        scales = [(high - low) / levels, low]
        ratio = (blocks - low) * _inverse(scales[0])
    elif form.bits == 8:
        scales = [blocks.abs().amax(1, keepdim=True) / 127]
        ratio = blocks * _inverse(scales[0])
    else:
        # The largest number, with its sign, becomes the lowest whole one: that side has one more.
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scales = [largest / -(2 ** (form.bits - 1))]
        ratio = blocks * _inverse(scales[0])
    head = torch.cat(scales, dim=1).to(torch.float16).view(torch.uint8)
    if form.bits == 8:
        whole = _rounded(ratio.abs(), 0, chance) * ratio.sign()
        return torch.cat([head, whole.clamp_(-127, 127).to(torch.int8).view(torch.uint8)], dim=1)
    offset = 0 if form.has_minimum else 2 ** (form.bits - 1)
    whole = _rounded(ratio, offset, chance).clamp_(0, levels).to(torch.uint8)
    first, second = whole.chunk(2, dim=1)
    parts = [head, (first & 0x0F) | (second << 4)]
    if form.bits == 5:
        places = 2 ** torch.arange(8, dtype=torch.uint8, device=blocks.device)
        parts.insert(1, ((whole >> 4).view(-1, 4, 8) * places).sum(-1, dtype=torch.uint8))
    return torch.cat(parts, dim=1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _rounded(ratio: Tensor, offset: int, chance: torch.Generator | None) -> Tensor:
    if chance is None:
        return (ratio + (offset + 0.5)).floor_()
    return (ratio + offset + torch.rand(ratio.shape, generator=chance, device=ratio.device)).floor_()
