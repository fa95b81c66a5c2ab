"""Several processes that train one model, each on its own part of the batch, over gloo or NCCL.

``torchrun`` or whoever starts the processes sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without them a
process is alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Team:
    """This process's place: ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Team:
        """Joins the processes that the environment names, or is alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        torch.distributed.init_process_group("gloo")
        return cls(torch.distributed.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average(self, parameters: Iterable[nn.Parameter], stopping: bool) -> bool:
        """Replaces every gradient by the mean over all processes; returns whether any of them wants to stop."""
        if self.size == 1:
            return stopping
        gradients = [p.grad for p in parameters if p.grad is not None]
        flag = torch.tensor([float(stopping)])
        flat = torch.cat([*(g.flatten() for g in gradients), flag])
        torch.distributed.all_reduce(flat)
        parts: list[Tensor] = list((flat[:-1] / self.size).split([g.numel() for g in gradients]))
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return bool(flat[-1] > 0)
