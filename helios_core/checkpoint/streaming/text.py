"""UMT5 whose blocks pass through the device: 11 GB of weights in the room of two of its 24 blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..folder import read_entries
from ..umt5 import EMBEDDING, run_time_type
from .buffers import BlockLayout
from .sources import DiskBlocks, Stored
from .stream import BlockStream


def stream_encoder(
    encoder: nn.Module, files: list[Path], state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """transformers' UMT5 stack on the meta device -> one that works, whose blocks are read from ``files``.

    ``state`` holds the files' tensors, memory-mapped.
    """
    stream = _block_stream(encoder.block, files, dtype, device)
    encoder.block = nn.ModuleList(_StreamedBlock(stream, index) for index in range(len(encoder.block)))
    norm = state["encoder.final_layer_norm.weight"].to(device, dtype)
    encoder.final_layer_norm.load_state_dict({"weight": norm}, assign=True)
    return _StreamedEncoder(encoder, stream, state[EMBEDDING], dtype)


def _block_stream(blocks: nn.ModuleList, files: list[Path], dtype: torch.dtype, device: torch.device) -> BlockStream:
    entries = read_entries(files)
    shapes: Mapping[str, torch.Size] = {name: value.shape for name, value in blocks[0].named_parameters()}
    stored = [
        {name: Stored(*entries[f"encoder.block.{index}.{name}"]) for name in shapes} for index in range(len(blocks))
    ]
    types = {name: run_time_type(name, dtype) for name in shapes}
    return BlockStream(DiskBlocks(stored), blocks[0], len(blocks), BlockLayout.packed(shapes, types), device)


class _StreamedBlock(nn.Module):
    """Stands in for one of transformers' blocks."""

    def __init__(self, stream: BlockStream, index: int):
        super().__init__()
        self._stream, self._index = stream, index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._stream.block(self._index, wrap=False) as block:
            return block(*args, **kwargs)


class _StreamedEncoder(nn.Module):
    """Token ids and mask, each [B,L], to ``last_hidden_state`` [B,L,D], as transformers' UMT5EncoderModel."""

    def __init__(self, encoder: nn.Module, stream: BlockStream, embedding: Tensor, dtype: torch.dtype):
        super().__init__()
        self.norm = encoder.final_layer_norm
        # Not as a submodule: its embedding is on the meta device, and parameters() tells callers the device.
        self._encoder = [encoder]
        # A view of the file: only the rows of the prompt's tokens are ever read.
        self._embedding = embedding
        self._stream, self._dtype = stream, dtype

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        try:
            rows = F.embedding(ids.cpu(), self._embedding).to(ids.device, self._dtype)
            output = self._encoder[0](inputs_embeds=rows, attention_mask=mask)
            return SimpleNamespace(last_hidden_state=output.last_hidden_state)
        finally:
            self._stream.close()
