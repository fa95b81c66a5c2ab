"""LAION's aesthetic head: a picture's CLIP embedding to a score, 1 to 10."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checkpoint.folder import existing_file
from ...checkpoint.mapped import map_file
from ...errors import HeliosError, reason

# LAION's are below 4 MB.
LARGEST = 16 * 2**20
_LAYER = re.compile(r"(?:.*?(\d+)\.)?(weight|bias)")

Embed = Callable[[np.ndarray], Tensor]
"""A frame, uint8 [H,W,3] -> its projected CLIP embedding [D]."""


class AestheticHead:
    """LAION's head: one linear layer (version 1), or several without anything between them (version 2, an MLP whose
    activations its authors left out).

    Args:
        layers: weight [out,in] and bias [out] of each; the first takes an embedding, the last gives one number.

    Raises:
        HeliosError: layers that do not follow each other.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]):
        width = layers[0][0].shape[-1] if layers else 0
        self.width = width
        for weight, bias in layers:
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise HeliosError("its layers do not follow each other.")
            width = len(weight)
        if width != 1:
            raise HeliosError("its last layer does not give one number.")
        self._layers = [(weight.double(), bias.double()) for weight, bias in layers]

    @classmethod
    def read(cls, path: Path) -> AestheticHead:
        """Reads a head from a safetensors or PyTorch file.

        Raises:
            HeliosError: another file.
        """
        try:
            numbered: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors_of(path).items():
                found = _LAYER.fullmatch(name)
                if found is None:
                    raise HeliosError(f"it holds {name}.")
                numbered.setdefault(int(found[1] or 0), {})[found[2]] = tensor
            return cls([(numbered[i]["weight"], numbered[i]["bias"]) for i in sorted(numbered)])
        # Reading fails in whatever a foreign file meets first.
        except Exception as error:
            raise HeliosError(f"{path.name} is no aesthetic head ({reason(error)}).") from error

    def __call__(self, embedding: Tensor) -> float:
        """The score of an embedding [D], which is brought to length 1 first, as in LAION's training."""
        x = embedding.double().cpu()
        x = x / x.norm()
        for weight, bias in self._layers:
            x = weight @ x + bias
        return x.item()


def tensors_of(path: Path) -> Any:
    """What a safetensors file or a PyTorch file of plain weights holds; mapped, but for PyTorch's old format."""
    if path.suffix.lower() in (".safetensors", ".sft"):
        return map_file(existing_file(path))[0]
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def heads(files: Iterable[Path]) -> Iterator[AestheticHead]:
    """Those of ``files`` that are aesthetic heads."""
    for file in files:
        with contextlib.suppress(HeliosError, OSError):
            if file.stat().st_size <= LARGEST:
                yield AestheticHead.read(file)
