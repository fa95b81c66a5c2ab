"""The Helios transformer: history context in, velocity of one chunk out."""

from .attention_backends import ATTENTION_NAMES, choose_attention, is_exact_attention
from .config import TransformerConfig
from .model import HeliosTransformer
from .prepared import PreparedHistory, PreparedText

__all__ = [
    "ATTENTION_NAMES",
    "HeliosTransformer",
    "PreparedHistory",
    "PreparedText",
    "TransformerConfig",
    "choose_attention",
    "is_exact_attention",
]
