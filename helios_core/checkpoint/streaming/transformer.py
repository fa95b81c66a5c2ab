"""The transformer whose blocks are not in device memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...networks.transformer import HeliosTransformer, PreparedText
from ...networks.transformer.block import BlockContext
from .stream import BlockStream

# All that a prompt needs of a block.
PROMPT_PARTS = ("cross_attn.k.", "cross_attn.v.", "cross_attn.norm_k.")


class StreamedTransformer(HeliosTransformer):
    """A :class:`HeliosTransformer` whose ``blocks`` stay on the meta device and run out of ``stream`` instead."""

    stream: BlockStream

    def prepare_text(self, text: Tensor) -> PreparedText:
        """See :meth:`HeliosTransformer.prepare_text`; reads two matrices of every block."""
        projected = self.text_embedding(text)
        names = [name for name, _ in self.blocks[0].named_parameters() if name.startswith(PROMPT_PARTS)]
        keys_values = []
        for index in range(len(self.blocks)):
            with self.stream.block(index, names, wrap=False) as block:
                keys_values.append(block.cross_attn.prepare(projected))  # type: ignore[union-attr,operator]
        return PreparedText(tuple(keys_values))

    def run_block(
        self, index: int, x: Tensor, context: BlockContext, keys_values: tuple[Tensor, Tensor], noisy_only: bool
    ) -> Any:
        """See :meth:`HeliosTransformer.run_block`."""
        with self.stream.block(index) as block:
            return block(x, context, keys_values, noisy_only)
