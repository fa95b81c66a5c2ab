"""Several processes that train one model, each on its own part of the batch, over gloo or NCCL.

``torchrun`` or whoever starts the processes sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without them a
process is alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from helios_core.networks.transformer import HeliosTransformer

# A process that has encoded its clips waits for the others'.
LONGEST_WAIT = timedelta(hours=6)


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
        if torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), size)
        # NCCL where it is built in, for tensors on the GPU; gloo for those in host memory.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=LONGEST_WAIT)
        return cls(torch.distributed.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def average(self, parameters: Iterable[nn.Parameter], stopping: bool, loss: float = 0.0) -> tuple[bool, float]:
        """Replaces every gradient by the mean over all processes.

        Returns whether any of them wants to stop, and the mean of their losses.
        """
        if self.size == 1:
            return stopping, loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        told = gradients[0].new_tensor([float(stopping), loss])
        flat = torch.cat([*(g.flatten() for g in gradients), told])
        torch.distributed.all_reduce(flat)
        parts: list[Tensor] = list((flat[:-2] / self.size).split([g.numel() for g in gradients]))
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return bool(flat[-2] > 0), float(flat[-1]) / self.size


def shard_blocks(model: HeliosTransformer, device: torch.device) -> None:
    """Divides the blocks' frozen matrices among all processes; a layer group is whole only while it computes (FSDP2).

    Everything else is moved to ``device`` whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in model.blocks:
        # One by one, not the block as a whole: its cross-attention also runs alone, to prepare the text.
        for group in (block.self_attn, block.cross_attn, block.ffn):
            small = {parameter for parameter in group.parameters() if parameter.ndim < 2}
            fully_shard(group, mesh=mesh, reshard_after_forward=True, ignored_params=small)
        register_fsdp_forward_method(block.cross_attn, "prepare")
    for parameter in model.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(device)
