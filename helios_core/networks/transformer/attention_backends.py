"""Attention without ComfyUI: one interface, PyTorch's own kernels, and installed ones where the GPU can run them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import HeliosError, shortened

# Older versions of PyTorch can choose among backends, and not order them.
_HAS_PRIORITY = "set_priority" in inspect.signature(sdpa_kernel).parameters


class AttentionFunction(Protocol):
    """q [B,Lq,heads*D], k and v [B,Lk,heads*D] -> [B,Lq,heads*D]: the signature of ComfyUI's attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """An attention package that may be installed.

    ``function`` of ``module`` takes q, k and v as [B,L,heads,D] half-precision CUDA tensors, and ``options``.
    ``generations`` are the major compute capabilities its kernels are built for. ``exact`` ones differ from PyTorch's
    by rounding alone and may be chosen without being asked for.
    """

    module: str
    function: str
    generations: tuple[int, ...]
    exact: bool = True
    options: tuple[tuple[str, Any], ...] = ()

    def installed(self) -> bool:
        try:
            return importlib.util.find_spec(self.module) is not None
        except (ImportError, OSError):  # the parent package is absent, or built for another PyTorch
            return False

    def load(self) -> AttentionFunction:
        kernel: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        options = dict(self.options)

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            if q.dtype == torch.float32:
                return sdpa_attention(q, k, v, heads)
            out = kernel(*(x.unflatten(-1, (heads, -1)) for x in (q, k, v)), **options)
            # Some versions also return the softmax's normaliser.
            return (out[0] if isinstance(out, tuple) else out).flatten(2)

        return attention


# In the order of preference. FlashAttention 3 has Hopper kernels only (9), 4 those of Hopper and Blackwell (9, 10).
BACKENDS = {
    "flash3": Backend("flash_attn_interface", "flash_attn_func", (9,)),
    "flash4": Backend("flash_attn.cute", "flash_attn_func", (9, 10)),
    # Quantises q and k: another video, so only by name.
    "sage": Backend("sageattention", "sageattn", (8, 9, 10, 12), exact=False, options=(("tensor_layout", "NHD"),)),
}
ATTENTION_NAMES = ("auto", "sdpa", *BACKENDS)


def choose_attention(name: str = "auto", device: torch.device | str = "cpu") -> AttentionFunction:
    """The attention function of ``name`` for a device.

    ``auto`` takes the first installed exact backend with kernels for the device's generation, else ``sdpa``.

    Raises:
        HeliosError: an unknown name, or a backend that is not installed or not made for this device.
    """
    if name not in ATTENTION_NAMES:
        raise HeliosError(f"attention={shortened(name)} is unknown; use one of {', '.join(ATTENTION_NAMES)}.")
    generation = _generation(torch.device(device))
    if name == "auto":
        for backend in BACKENDS.values():
            if backend.exact and generation in backend.generations and backend.installed():
                # One that is built for another PyTorch is as good as none.
                with suppress(ImportError, OSError, AttributeError):
                    return backend.load()
        return sdpa_attention
    if name == "sdpa":
        return sdpa_attention
    backend = BACKENDS[name]
    if generation not in backend.generations:
        made_for = " or ".join(f"{major}.x" for major in backend.generations)
        has = "no CUDA device" if generation is None else f"compute capability {generation}.x"
        raise HeliosError(f"attention={name!r} has kernels for compute capability {made_for}, not for {has}; use sdpa.")
    if not backend.installed():
        raise HeliosError(f"attention={name!r} needs the Python module {backend.module}; install it, or use sdpa.")
    try:
        return backend.load()
    except (ImportError, OSError, AttributeError) as error:
        raise HeliosError(f"attention={name!r} cannot be loaded ({error}); reinstall it, or use sdpa.") from error


def is_exact_attention(name: str) -> bool:
    """Whether the choice of ``name`` changes results by rounding alone."""
    return name not in BACKENDS or BACKENDS[name].exact


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """PyTorch's scaled dot product attention, unmasked."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    with _cudnn_first() if _prefers_cudnn(q) else nullcontext():
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _generation(device: torch.device) -> int | None:
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)[0]


def _prefers_cudnn(q: Tensor) -> bool:
    """PyTorch's own flash kernels are FlashAttention 2, which was made for Ampere.

    Not measured here yet: ``benchmarks.speed`` prints both on a GPU.
    """
    return q.is_cuda and q.dtype != torch.float32 and _HAS_PRIORITY and _generation(q.device) in (9, 10)


def _cudnn_first() -> Any:
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)
