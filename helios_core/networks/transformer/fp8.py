"""Matrix products in 8 bits: weights and tokens as scaled e4m3, sums in float32. An option: the video is another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import HeliosError

LARGEST = 448.0
# Recipes for diffusion transformers leave as many blocks at each end exact.
EXACT_BLOCKS = 3
MULTIPLE = 16  # of both sides of a matrix that the device's product takes
OLDEST_CAPABILITY = (8, 9)


class Fp8Linear(nn.Module):
    """A Linear whose product is of e4m3 numbers: the weight's scale is fixed, the tokens' that of each call."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        device = linear.weight.device
        self.weight = nn.Parameter(torch.empty_like(linear.weight, dtype=torch.float8_e4m3fn), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.ones((), device=device), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [...,in] -> [...,out] in x's type."""
        tokens = x.reshape(-1, x.shape[-1])
        scale = scale_of(tokens)
        # Not the public functional.scaled_mm: in torch 2.11 it has no CPU kernel, and torch.compile breaks off at it.
        out = torch._scaled_mm(
            quantise(tokens, scale), self.weight.t(), scale_a=scale, scale_b=self.weight_scale, out_dtype=torch.bfloat16
        )
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).unflatten(0, x.shape[:-1])


def use_fp8(model: nn.Module, exact_blocks: int = EXACT_BLOCKS) -> list[str]:
    """Replaces the Linear layers of all but the first and last blocks; returns their names."""
    replaced = []
    for index in range(exact_blocks, len(model.blocks) - exact_blocks):  # type: ignore[arg-type]
        block: nn.Module = model.blocks[index]  # type: ignore[index,assignment]
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear) and not any(side % MULTIPLE for side in layer.weight.shape):
                parent, _, attribute = name.rpartition(".")
                setattr(block.get_submodule(parent), attribute, Fp8Linear(layer))
                replaced.append(f"blocks.{index}.{name}")
    return replaced


def narrowed(weight: Tensor) -> dict[str, Tensor]:
    """A weight as e4m3 with its scale, by :class:`Fp8Linear`'s names."""
    scale = scale_of(weight)
    return {"weight": quantise(weight.float(), scale), "weight_scale": scale}


def scale_of(x: Tensor) -> Tensor:
    """The float32 scalar that brings the largest number of ``x`` to e4m3's largest."""
    return x.abs().amax().float().clamp_min(torch.finfo(torch.float32).tiny) / LARGEST


def quantise(x: Tensor, scale: Tensor | float) -> Tensor:
    """Rounds ``x`` / ``scale`` to e4m3, saturating; the quotient is in x's type."""
    return (x / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def check_device(device: torch.device | str) -> None:
    """Refuses what has no 8-bit matrix products of this format.

    Raises:
        HeliosError: a GPU of compute capability below 8.9, or another kind of device.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return
    has = "none" if device.type != "cuda" or torch.version.hip is not None else _capability(device)
    if has == "none" or tuple(map(int, has.split("."))) < OLDEST_CAPABILITY:
        raise HeliosError(
            f"fp8_matmul=True needs an NVIDIA GPU of compute capability 8.9 or newer, {device} has {has}; leave it off."
        )


def _capability(device: torch.device) -> str:
    return ".".join(map(str, torch.cuda.get_device_capability(device)))
