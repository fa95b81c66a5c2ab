"""LoRA: small trained matrices beside the frozen ones of a released model, and the file that they become.

The model stays as it is. Every chosen layer y = W x + b gets a forward hook that adds alpha / rank * B (A x)
(LoRA, arXiv 2106.09685); A and B live in a module of their own. So nothing of the model is renamed or wrapped, and its
frozen blocks may be sharded or streamed. The loss is that of the stage which made the model: stage 1's for Base,
stage 2's for Mid and Distilled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer
from helios_core.samplers import SchedulerConfig

from .data import Clips
from .stage1 import Stage1
from .stage2 import STAGE_SHARES, Stage2
from .streamed import StreamedForTraining
from .trainer import StepRandom, Task

LAYERS = (
    *(f"{attention}.{letter}" for attention in ("self_attn", "cross_attn") for letter in "qkvo"),
    "ffn.0",
    "ffn.2",
)
DEFAULT_TARGETS = ("self_attn", "cross_attn", "ffn")


def chosen_layers(targets: Sequence[str]) -> list[str]:
    """The layers of a block that ``targets`` name: ``self_attn.q``, or ``self_attn`` for its four.

    Raises:
        HeliosError: a target that names none.
    """
    for target in targets:
        if not any(_names(target, layer) for layer in LAYERS):
            raise HeliosError(f"target {target!r} names no layer of a block; use {', '.join(DEFAULT_TARGETS)}, "
                              f"or one of {', '.join(LAYERS)}.")  # fmt: skip
    return [layer for layer in LAYERS if any(_names(target, layer) for target in targets)]


def _names(target: str, layer: str) -> bool:
    return layer == target or layer.startswith(f"{target}.")


class Adapters(nn.Module):
    """A [rank,in] and B [out,rank] for the chosen layers of every block, in float32; B starts at zero."""

    def __init__(self, model: HeliosTransformer, rank: int, alpha: float, targets: Sequence[str] = DEFAULT_TARGETS):
        super().__init__()
        if rank < 1 or not math.isfinite(alpha):
            raise HeliosError(f"rank={rank} and alpha={alpha} make no LoRA; use a rank of at least 1, such as 16.")
        self.rank, self.alpha = rank, alpha
        self.layers = chosen_layers(targets)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        generator = torch.Generator().manual_seed(0)
        device = model.patch_embedding.weight.device
        for index, block in enumerate(model.blocks):
            for layer in self.layers:
                out, inner = block.get_submodule(layer).weight.shape
                drawn = torch.rand(rank, inner, generator=generator) * 2 - 1
                self.down[_key(index, layer)] = nn.Parameter((drawn / math.sqrt(inner)).to(device))
                self.up[_key(index, layer)] = nn.Parameter(torch.zeros(out, rank, device=device))

    def change(self, index: int, layer: str, x: Tensor) -> Tensor:
        """What block ``index``'s ``layer`` adds for its input x [...,in], in x's type."""
        down, up = self.down[_key(index, layer)], self.up[_key(index, layer)]
        return F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)) * (self.alpha / self.rank)

    def attach(self, model: HeliosTransformer) -> None:
        """Makes the blocks of ``model`` add the changes.

        Those of a streamed model must not have been read yet: they are copies of its first, with its hooks.
        """
        for layer in self.layers:
            if isinstance(model, StreamedForTraining):
                model.blocks[0].get_submodule(layer).register_forward_hook(self._hook(lambda: model.running, layer))
                continue
            for index, block in enumerate(model.blocks):
                block.get_submodule(layer).register_forward_hook(self._hook(partial(int, index), layer))

    def _hook(self, number: Callable[[], int], layer: str) -> Any:
        return lambda _, inputs, output: output + self.change(number(), layer, inputs[0])

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The content of a LoRA file, under Wan's names with core's prefix, which ComfyUI and diffusers read."""
        found: dict[str, Tensor] = {}
        blocks = len(self.down) // len(self.layers)
        for name, key in ((f"blocks.{i}.{layer}", _key(i, layer)) for i in range(blocks) for layer in self.layers):
            found[f"diffusion_model.{name}.lora_A.weight"] = self.down[key].detach().to("cpu", dtype).contiguous()
            found[f"diffusion_model.{name}.lora_B.weight"] = self.up[key].detach().to("cpu", dtype).contiguous()
            found[f"diffusion_model.{name}.alpha"] = torch.tensor(float(self.alpha))
        return found


def _key(index: int, layer: str) -> str:
    return f"{index}_{layer.replace('.', '_')}"


def write_lora(adapters: Adapters, path: Path, dtype: torch.dtype, variant: str) -> None:
    """Writes the file; a kill at any moment leaves none or a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file(adapters.tensors(dtype), partial, {"format": "pt", "helios.trained_on": variant})
    partial.replace(path)


class LoraTask(Task):
    """The loss of the model's own stage on a user's clips; every sample of a step has random numbers of its own.

    So the same samples are seen whether one process takes them all or several share them.
    """

    def __init__(
        self,
        model: HeliosTransformer,
        adapters: Adapters,
        clips: Clips,
        batch: int,
        variant: str,
        scheduler: SchedulerConfig,
    ):
        super().__init__(adapters)
        self.batch = batch
        self.stage: Stage1 | Stage2
        checkpointed = not isinstance(model, StreamedForTraining)  # which recomputes by itself
        if variant == "base":
            self.stage = Stage1(model, clips, 1, checkpointed=checkpointed)
        elif scheduler.stages == len(STAGE_SHARES):
            self.stage = Stage2(model, clips, 1, scheduler=scheduler, checkpointed=checkpointed)
        else:
            raise HeliosError(f"the model's scheduler has {scheduler.stages} stages; use a released one, which has 3.")

    def loss(self, step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        losses = [self.stage.loss(step, part)[0] for part in random.parts(self.batch)]
        return torch.stack(losses).mean(), {}
