"""Training through blocks that are not in device memory: each is read once in the forward, once in the backward pass.

A block's forward keeps its inputs only; its backward reads the block again, runs it again, and differentiates it while
it is there. The frozen weights get no gradient; whatever hooks add to a block's layers does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from helios_core.checkpoint.streaming import PROMPT_PARTS, StreamedTransformer
from helios_core.networks.transformer import PreparedText
from helios_core.networks.transformer.block import BlockContext

Work = Callable[..., tuple[Tensor, ...]]


class StreamedForTraining(StreamedTransformer):
    """A :class:`StreamedTransformer` with gradients. ``running`` is the number of the block that is computing."""

    running = -1

    def prepare_text(self, text: Tensor) -> PreparedText:
        """See :meth:`HeliosTransformer.prepare_text`."""
        projected = _differentiable(self.text_embedding(text))
        names = tuple(name for name, _ in self.blocks[0].named_parameters() if name.startswith(PROMPT_PARTS))

        def prepare(block: Any, projected: Tensor) -> tuple[Tensor, ...]:
            return block.cross_attn.prepare(projected)

        pairs = [self._through(index, names, prepare, projected) for index in range(len(self.blocks))]
        return PreparedText(tuple((keys, values) for keys, values in pairs))

    def run_block(
        self, index: int, x: Tensor, context: BlockContext, keys_values: tuple[Tensor, Tensor], noisy_only: bool
    ) -> Tensor:
        """See :meth:`HeliosTransformer.run_block`."""

        def run(block: Any, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
            return (block(x, context, (keys, values), noisy_only),)

        return self._through(index, None, run, _differentiable(x), *keys_values)[0]

    def _through(self, index: int, names: tuple[str, ...] | None, work: Work, *inputs: Tensor) -> tuple[Tensor, ...]:
        def with_block(step: int, then: Callable[[nn.Module], Any]) -> Any:
            with self.stream.block(index, names, wrap=False, step=step) as block:
                self.running = index
                return then(block)

        return _Through.apply(with_block, work, *inputs)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, with_block: Callable[..., Any], work: Work, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.with_block, ctx.work = with_block, work
        ctx.save_for_backward(*inputs)
        return with_block(1, lambda block: work(block, *inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]

        # All of it while the block is there: its buffer is the next one's afterwards.
        def differentiate(block: nn.Module) -> None:
            with torch.enable_grad():
                torch.autograd.backward(ctx.work(block, *inputs), gradients)

        ctx.with_block(-1, differentiate)
        return None, None, *(x.grad for x in inputs)


def _differentiable(x: Tensor) -> Tensor:
    """The pass must be recorded from its first block on, although nothing before it has gradients."""
    return x if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled())
