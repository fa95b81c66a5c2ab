"""Several processes that train one model, each on its own part of the batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from helios_core.networks.parallel.team import LONGEST_WAIT, Team
from helios_core.networks.transformer import HeliosTransformer


def averaged(team: Team, parameters: Iterable[nn.Parameter], stopping: bool, loss: float = 0.0) -> tuple[bool, float]:
    """Replaces every gradient by the mean over all processes.

    Returns whether any of them wants to stop, and the mean of their losses.
    """
    if team.size == 1:
        return stopping, loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    told = gradients[0].new_tensor([float(stopping), loss])
    flat = torch.cat([*(g.flatten() for g in gradients), told])
    torch.distributed.all_reduce(flat)
    parts: list[Tensor] = list((flat[:-2] / team.size).split([g.numel() for g in gradients]))
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return bool(flat[-2] > 0), float(flat[-1]) / team.size


def join() -> Team:
    """The processes that the environment names, which may be hours apart: one has more clips to encode than another."""
    return Team.from_environment(LONGEST_WAIT)


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
