"""The Helios transformer: history context in, velocity of one chunk out."""

from .attention_backends import ATTENTION_NAMES, choose_attention, is_exact_attention
from .model import HeliosTransformer, TransformerConfig
from .options import check_speed_options
from .prepared import PreparedHistory, PreparedText

__all__ = [
    "ATTENTION_NAMES",
    "HeliosTransformer",
    "PreparedHistory",
    "PreparedText",
    "TransformerConfig",
    "check_speed_options",
    "choose_attention",
    "is_exact_attention",
]
