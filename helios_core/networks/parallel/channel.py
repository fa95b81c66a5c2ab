"""What one process says to the others of a group: a Python object, and tensors behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .team import in_touch

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Channel:
    """``objects`` is a gloo group; ``tensors`` the group for tensors, of the same processes, None for all there are.

    Everything here raises LostProcessError where another process ended, or did not come in time.
    """

    objects: Any
    tensors: Any

    def tell(self, source: int, content: Any, tensors: Sequence[Tensor] = ()) -> None:
        """From process ``source``, which is this one, to the others."""
        with in_touch():
            dist.broadcast_object_list([content], source, group=self.objects, device=HOST)
            for tensor in tensors:
                dist.broadcast(tensor.contiguous(), source, group=self.tensors)

    def told(self, source: int) -> Any:
        """The next content of process ``source``, whose tensors follow."""
        content: list[Any] = [None]
        with in_touch():
            dist.broadcast_object_list(content, source, group=self.objects, device=HOST)
        return content[0]

    def tensor(self, source: int, shape: torch.Size, dtype: torch.dtype, device: torch.device = HOST) -> Tensor:
        """The next tensor of process ``source``."""
        tensor = torch.empty(shape, dtype=dtype, device=device)
        with in_touch():
            dist.broadcast(tensor, source, group=self.tensors)
        return tensor
