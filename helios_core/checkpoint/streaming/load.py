"""Builds a streamed transformer from any checkpoint that the loader knows."""

from __future__ import annotations

from typing import TypeVar

import torch

from ...errors import HeliosError, shortened
from ..load import check_state_dict, place
from ..quantised import decoders, without_companions
from ..source import TransformerSource
from .buffers import BlockLayout
from .sources import BlockSource, DiskBlocks, PinnedBlocks, Stored
from .stream import BlockStream
from .transformer import StreamedTransformer

OFFLOADS = ("disk", "cpu")
T = TypeVar("T", bound=StreamedTransformer)


def check_offload(offload: str | None) -> None:
    """Refuses a mode that does not exist.

    Raises:
        HeliosError: neither one of ``OFFLOADS`` nor None.
    """
    if offload is not None and offload not in OFFLOADS:
        raise HeliosError(f"offload={shortened(offload)} is unknown; use 'disk', 'cpu' or None.")


def stream_transformer(
    source: TransformerSource,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    offload: str = "disk",
    kind: type[T] = StreamedTransformer,  # type: ignore[assignment]
) -> T:
    """The transformer with all but its blocks on ``device``.

    ``disk`` reads blocks from the file at every step; ``cpu`` holds them in host memory. ``kind`` is the class.

    Raises:
        HeliosError: an unknown mode; missing, extra or misshaped tensors; a damaged file; too little host memory.
    """
    check_offload(offload)
    device = torch.device(device)
    with torch.device("meta"):
        model = kind(**source.config.to_dict(), dtype=dtype)
    state = source.state_dict()
    check_state_dict(model, state, source.path, metadata=source.metadata)
    decode = decoders(state, source.metadata, source.path)
    resident = {
        key: place(key, tensor, dtype, device, decode.get(key))
        for key, tensor in without_companions(state).items()
        if not key.startswith("blocks.")
    }
    model.load_state_dict(resident, assign=True, strict=False)
    entries = source.entries()
    template = model.blocks[0]
    disk = DiskBlocks(
        [
            {
                name: Stored(*entries[key], decode.get(key))
                for name, key in ((name, f"blocks.{index}.{name}") for name, _ in template.named_parameters())
            }
            for index in range(len(model.blocks))
        ]
    )
    layout = BlockLayout.of(template, dtype)
    blocks: BlockSource = disk if offload == "disk" else PinnedBlocks(disk, layout, device)
    model.stream = BlockStream(blocks, template, len(model.blocks), layout, device)
    return model.requires_grad_(False).eval()  # type: ignore[return-value]
