"""The chunks of a node whose prompts come while it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import comfy.model_management
from torch import Tensor

from ...helios_core.take.directions import Script
from ...helios_core.take.history import History
from ...helios_core.take.live import KEPT_PROMPTS
from ...helios_core.take.prompts import PromptSchedule
from .chunk_source import NodeChunks
from .schedule import scheduled


class LiveChunks(NodeChunks):
    """A ``DirectedSource`` (``helios_core.take.directed_film``) over a MODEL and a CLIP.

    Args:
        anchor: an input picture's name -> anchor [1,16,1,h,w], normalised model space.

    Attributes:
        on_begin: told each chunk that begins.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        script: Script,
        negative: list,
        cfg: float,
        sampler: Any,
        history: History,
        num_chunks: int,
        anchor: Callable[[str], Tensor],
    ):
        def encode(text: str) -> list:
            return clip.encode_from_tokens_scheduled(clip.tokenize(text))

        self._encode, self._anchor = functools.lru_cache(KEPT_PROMPTS)(encode), anchor
        self.on_begin: Callable[[int], None] = lambda _: None
        positive = self._encoded(script.schedule, history.chunk)
        super().__init__(model, positive, negative, cfg, sampler, history, num_chunks)

    def begin(self, chunk: int, script: Script) -> Tensor | None:
        """Encodes the prompts of ``chunk``, and its anchor where it has a new one."""
        self.on_begin(chunk)
        self.positive = self._encoded(script.schedule, chunk)
        return self._anchor(script.anchors[chunk][0]) if chunk in script.anchors else None

    def check(self) -> None:
        """Stops as core stops a sampler."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    def _encoded(self, schedule: PromptSchedule[str], chunk: int) -> list:
        return scheduled(schedule.around(chunk).encoded(self._encode))
