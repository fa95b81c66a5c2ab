"""UMT5 whose blocks pass through the device: 11 GB of weights in the room of two of its 24 blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...networks.text import TextEncoder, load_tokenizer, require
from ..folder import read_entries, read_json, read_tensors, weight_files
from ..load import check_state_dict
from ..umt5 import TIED_EMBEDDING
from .buffers import BlockLayout
from .sources import DiskBlocks, Stored
from .stream import BlockStream

WEIGHTS_NAME = "model.safetensors"
_EMBEDDING = "shared.weight"


def streamed_text_encoder(
    folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The text encoder of a released folder, whose blocks are read from the file at every prompt.

    Between prompts it holds one small tensor on the device and no thread.

    Raises:
        HeliosError: a missing, damaged or foreign file.
    """
    folder, device = Path(folder), torch.device(device)
    tokenizer = load_tokenizer(folder)
    weights = folder / "text_encoder"
    files = weight_files(weights, WEIGHTS_NAME)
    transformers = require("transformers")
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(transformers.UMT5Config.from_dict(read_json(weights / "config.json")))
    state = read_tensors(files)
    if _EMBEDDING in state:
        state.setdefault(TIED_EMBEDDING, state[_EMBEDDING])
    check_state_dict(model, state, weights, "UMT5 text encoder")
    encoder = model.encoder.requires_grad_(False).eval()
    stream = _block_stream(encoder.block, files, dtype, device)
    encoder.block = nn.ModuleList(_StreamedBlock(stream, index) for index in range(len(encoder.block)))
    norm = state["encoder.final_layer_norm.weight"].to(device, dtype)
    encoder.final_layer_norm.load_state_dict({"weight": norm}, assign=True)
    return TextEncoder(_StreamedEncoder(encoder, stream, state[_EMBEDDING], dtype), tokenizer)


def _block_stream(blocks: nn.ModuleList, files: list[Path], dtype: torch.dtype, device: torch.device) -> BlockStream:
    entries = read_entries(files)
    shapes: Mapping[str, torch.Size] = {name: value.shape for name, value in blocks[0].named_parameters()}
    stored = [
        {name: Stored(*entries[f"encoder.block.{index}.{name}"]) for name in shapes} for index in range(len(blocks))
    ]
    # transformers keeps these wider too: they overflow in float16.
    types = {name: torch.float32 if dtype == torch.float16 and ".wo." in name else dtype for name in shapes}
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
