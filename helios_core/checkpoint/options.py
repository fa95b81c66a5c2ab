"""The options that trade exactness, memory and speed of a transformer: which go together, and what they do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import HeliosError
from ..networks.transformer import HeliosTransformer, choose_attention, is_exact_attention
from ..networks.transformer.fp8 import check_device
from .load import load_transformer
from .source import TransformerSource
from .streaming import check_offload, stream_transformer


@dataclass(frozen=True)
class LoadOptions:
    """Options of ``HeliosPipeline.from_pretrained``, which says what they mean; ``processes`` share a forward."""

    offload: str | None = None
    attention: str = "auto"
    fp8_matmul: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    processes: int = 1

    @property
    def inexact(self) -> tuple[str, ...]:
        """Those under which the video is another one."""
        names = ("fp8_matmul",) * self.fp8_matmul + (self.attention,) * (not is_exact_attention(self.attention))
        # Tokens are narrowed together, and each of several processes has others.
        return tuple(f"{name} in {self.processes}" for name in names) if self.processes > 1 else names

    def check(self, device: torch.device | str) -> None:
        """Refuses options that do not exist or do not go together, before anything is read.

        Raises:
            HeliosError: what is wrong with them, or that the device cannot do what is asked.
        """
        check_offload(self.offload)
        switches = {name: getattr(self, name) for name in ("fp8_matmul", "compile", "cuda_graphs")}
        check_speed_options(self.offload, switches, device)
        if self.cuda_graphs and self.processes > 1:
            raise HeliosError("cuda_graphs=True records no exchange between processes; drop it, or start one process.")
        choose_attention(self.attention, device)

    def load(self, source: TransformerSource, dtype: torch.dtype, device: torch.device | str) -> HeliosTransformer:
        """The transformer, ready to run. Raises as :func:`load_transformer`."""
        if self.offload is None:
            transformer = load_transformer(source, dtype, device, self.fp8_matmul)
        else:
            transformer = stream_transformer(source, dtype, device, self.offload)
        transformer.attention = choose_attention(self.attention, device)
        if self.compile:
            transformer.compile_blocks()
        if self.cuda_graphs:
            transformer.use_cuda_graphs()
        return transformer


def check_speed_options(offload: str | None, options: dict[str, bool], device: torch.device | str) -> None:
    """Refuses options that do not go together, before anything is read.

    Raises:
        HeliosError: streamed blocks cannot be compiled, recorded or narrowed, or the device cannot do what is asked.
    """
    chosen = [name for name, value in options.items() if value]
    if offload is not None and chosen:
        raise HeliosError(f"{chosen[0]}=True does not work with offload={offload!r}: blocks come and go; drop one.")
    if "cuda_graphs" in chosen and torch.device(device).type != "cuda":
        raise HeliosError(f"cuda_graphs=True needs a CUDA device, not device={str(device)!r}; leave it off.")
    if "fp8_matmul" in chosen:
        check_device(device)
