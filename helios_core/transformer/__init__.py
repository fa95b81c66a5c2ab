"""The Helios transformer: history context in, velocity of one chunk out."""

from .model import HeliosTransformer, TransformerConfig
from .prepared import PreparedHistory, PreparedText

__all__ = ["HeliosTransformer", "PreparedHistory", "PreparedText", "TransformerConfig"]
