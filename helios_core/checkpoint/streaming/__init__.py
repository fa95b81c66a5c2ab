"""Small memory: a transformer and a text encoder whose blocks pass through the device one after another."""

from .buffers import Piece
from .load import OFFLOADS, check_offload, stream_transformer
from .sources import BlockSource, DiskBlocks, PinnedBlocks, Stored
from .stream import BlockStream
from .transformer import PROMPT_PARTS, StreamedTransformer

__all__ = [
    "OFFLOADS",
    "PROMPT_PARTS",
    "BlockSource",
    "BlockStream",
    "DiskBlocks",
    "Piece",
    "PinnedBlocks",
    "Stored",
    "StreamedTransformer",
    "check_offload",
    "stream_transformer",
]
