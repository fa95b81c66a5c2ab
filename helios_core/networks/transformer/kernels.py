"""The memory-bound steps between the matrix products, each in as few passes over memory as the device allows.

Norms keep float32 statistics and modulation, and round to the model's type once. On CUDA rotary positions take
comfy-kitchen's kernel, which ComfyUI brings; its norm kernel does not serve, because it reads modulation in the type of
the tokens. All else is PyTorch's operators.
Under torch.compile, and where autograd records, plain out-of-place operators leave the fusing to the compiler.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@cache
def kitchen() -> Any:
    """comfy-kitchen where one of its fast backends runs here and is not switched off, else None."""
    try:
        import comfy_kitchen
    except ImportError:
        return None
    backends = [comfy_kitchen.list_backends().get(name, {}) for name in ("cuda", "triton", "hip")]
    usable = any(backend.get("available") and not backend.get("disabled") for backend in backends)
    # Older versions turn positions out of place only.
    return comfy_kitchen if usable and hasattr(comfy_kitchen, "apply_rope1_") else None


def _kitchen_for(x: Tensor) -> Any:
    if not x.is_cuda or torch.compiler.is_compiling() or _differentiated(x):
        return None
    return kitchen()


def _differentiated(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def may_overwrite(x: Tensor) -> bool:
    """Whether a tensor that nobody else holds is better changed in place."""
    return not torch.compiler.is_compiling() and not _differentiated(x)


def affine_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift: x [B,L,C], float32 scale and shift [1 or B,1,C] -> [B,L,C]."""
    if _has_one_pass_norm(x, scale):
        # The CPU's operator takes float32 weights with half-precision tokens.
        return F.layer_norm(x, x.shape[-1:], (1 + scale).flatten(), shift.flatten(), eps)
    return _wide_norm(x, scale, shift, eps, torch.empty_like(x) if may_overwrite(x) else None)


def _has_one_pass_norm(x: Tensor, scale: Tensor) -> bool:
    return x.device.type == "cpu" and scale.shape[0] == 1 and not torch.compiler.is_compiling()


def _wide_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor | None) -> Tensor:
    """:func:`affine_norm` in float32, rounded on its way into ``out``."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    if out is None:
        return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)
    return torch.addcmul(shift, normed, 1 + scale, out=out)


def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """An affine LayerNorm module whose weights may be wider than x [B,L,C]: computed in theirs, returned in x's type.

    The reference keeps norm3 in float32 in a bfloat16 model.
    """
    if not isinstance(norm, nn.LayerNorm):
        return norm(x)
    weight, bias = norm.weight, norm.bias
    if _held_elsewhere(norm, x) or not (weight.dtype == bias.dtype == torch.float32) or x.dtype == torch.float32:
        return norm(x.to(compute_dtype(norm, x.dtype))).to(x.dtype)
    return affine_norm(x, (weight - 1).view(1, 1, -1), bias.view(1, 1, -1), norm.eps)


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """An affine RMSNorm module over the channels of x [B,L,C], which may be overwritten."""
    if x.device.type != "cpu" or _held_elsewhere(norm, x) or not may_overwrite(x):
        return norm(x)
    # PyTorch fuses this on CUDA only; the same roundings as the operators it runs on a CPU.
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(x.shape[-1])
    return x.mul_(mean_square.add_(norm.eps).rsqrt_()).mul_(norm.weight)


def gated_residual(x: Tensor, y: Tensor, gates: tuple[Tensor, Tensor], history: int, overwrite: bool = False) -> Tensor:
    """x + y * gate, rounded once: x and y [B,L,C], float32 gates [1 or B,1,C] -> [B,L,C].

    The first gate is that of the leading ``history`` tokens. ``overwrite`` allows the result to be in ``x``.
    """
    parts = segments(x.shape[1], history)
    if not may_overwrite(y):
        sums = [torch.addcmul(x[:, part].float(), y[:, part].float(), gates[row]) for row, part in parts]
        return torch.cat(sums, dim=1).to(x.dtype)
    out = x if overwrite else torch.empty_like(x)
    for row, part in parts:
        torch.addcmul(x[:, part], y[:, part], gates[row], out=out[:, part])
    return out


def modulated_norm(
    x: Tensor, shift: tuple[Tensor, Tensor], scale: tuple[Tensor, Tensor], history: int, eps: float
) -> Tensor:
    """:func:`affine_norm` with one shift and scale for the leading ``history`` tokens and one for the others."""
    parts = segments(x.shape[1], history)
    if not may_overwrite(x):
        return torch.cat([affine_norm(x[:, part], scale[row], shift[row], eps) for row, part in parts], dim=1)
    if not _has_one_pass_norm(x, scale[0]):
        out = torch.empty_like(x)
        for row, part in parts:
            _wide_norm(x[:, part], scale[row], shift[row], eps, out[:, part])
        return out
    # All tokens with the rows of the larger part, then the smaller part again: less to copy than joining two results.
    larger, *others = sorted(parts, key=lambda part: part[1].start - part[1].stop)
    out = affine_norm(x, scale[larger[0]], shift[larger[0]], eps)
    for row, part in others:
        out[:, part] = affine_norm(x[:, part], scale[row], shift[row], eps)
    return out


def segments(length: int, history: int, most: int | None = None) -> list[tuple[int, slice]]:
    """The rows of modulation, 0 for history and 1 for noisy tokens, with the tokens each belongs to.

    ``most`` limits the tokens of a part.
    """
    parts = []
    for row, (start, stop) in enumerate([(0, history), (history, length)]):
        size = most or max(1, stop - start)
        parts += [(row, slice(first, min(first + size, stop))) for first in range(start, stop, size)]
    return parts


class TanhGELU(nn.GELU):
    """GELU, tanh form, into its input's memory: the feed-forward's hidden layer is the largest tensor of a forward."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        if may_overwrite(x):
            return torch.ops.aten.gelu_(x, approximate=self.approximate)
        return super().forward(x)


def rotation(table: Tensor) -> Tensor:
    """A rotary table [L,D/2,2] in the form that :func:`rotate` is fastest with on its device."""
    if _kitchen_for(table) is None:
        return table
    cos, sin = table.unbind(-1)
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


def rotate(x: Tensor, turn: Tensor, heads: int) -> Tensor:
    """Rotates pairs of neighbouring channels: x [B,L,heads*D], which may be overwritten, by :func:`rotation`'s."""
    by_head = x.unflatten(-1, (heads, -1))
    fused = _kitchen_for(x)
    if turn.ndim == 4:
        if fused is not None:
            fused.apply_rope1_(by_head, turn[None, :, None])
            return x
        turn = turn[..., 0]
    if not may_overwrite(x) or x.device.type not in ("cpu", "cuda"):
        return apply_rope(by_head, turn).flatten(-2)
    pairs = torch.view_as_complex(by_head.float().unflatten(-1, (-1, 2)))
    pairs.mul_(torch.view_as_complex(turn)[:, None])
    if x.dtype != torch.float32:
        by_head.copy_(torch.view_as_real(pairs).flatten(-2))
    return x


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotates pairs of neighbouring channels: x [B,L,heads,D], table [L,D/2,2] -> [B,L,heads,D]."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table[:, None].unbind(-1)
    rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def compute_dtype(module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The wider of ``dtype`` and the type of the module's weights.

    The reference keeps the time embedding and norm3 float32 in a bfloat16 model. A host's weights may be
    absent until loaded, or narrower because they are cast on use.
    """
    weight = getattr(module, "weight", None)
    if weight is None or weight.dtype.itemsize < 2:
        return dtype
    return torch.promote_types(dtype, weight.dtype)


def _held_elsewhere(module: nn.Module, x: Tensor) -> bool:
    """Whether a module's own forward must bring its weights; ``operations`` of a host may have norms that say so."""
    weight = getattr(module, "weight", None)
    return weight is None or weight.device != x.device or getattr(module, "held_elsewhere", False)
