"""What the network prepared for the conditions in force, kept between the steps of a chunk and between chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ...helios_core.networks.transformer import PreparedHistory, PreparedText

PREPARED_KEY = "helios_prepared"

T = TypeVar("T")


class PreparedInputs:
    """Prepared text and history by the identity of the conditions that core batched into one call.

    Core gives every condition an id when it is set on a guider. Text stays valid while that guider is used,
    history for one chunk.
    """

    def __init__(self) -> None:
        self._text: dict[tuple, PreparedText] = {}
        self._history: dict[tuple, PreparedHistory] = {}

    def text(self, conds: tuple, prepare: Callable[[], PreparedText]) -> PreparedText:
        return _once(self._text, conds, prepare)

    def history(self, conds: tuple, prepare: Callable[[], PreparedHistory]) -> PreparedHistory:
        return _once(self._history, conds, prepare)

    def next_chunk(self) -> None:
        """Forgets the history: the next chunk has another."""
        self._history.clear()


def _once(kept: dict[tuple, T], conds: tuple, prepare: Callable[[], T]) -> T:
    if not conds:
        return prepare()
    if conds not in kept:
        kept[conds] = prepare()
    return kept[conds]
