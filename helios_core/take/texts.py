"""What a caller says of prompts, as texts or as embeddings: checked, and encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import HeliosError
from .prompts import PromptSchedule, schedule_from_text


def schedule_of(prompt: Any, schedule: str | Sequence[tuple[int, str]] | None, blend: int) -> PromptSchedule[Any]:
    """What a caller gives as one prompt, or as a schedule in rows or as text."""
    if isinstance(schedule, str):
        return schedule_from_text(schedule, blend)
    return PromptSchedule(tuple([(0, prompt)] if schedule is None else schedule), blend)


@dataclass(frozen=True)
class Texts:
    """Prompts to embeddings [B,512,D] of width ``text_dim``.

    ``encode`` takes a prompt or several; ``place`` takes embeddings to the network's device and type.
    """

    encode: Callable[[Any], Tensor]
    place: Callable[[Tensor], Tensor]
    text_dim: int

    @staticmethod
    def batch_size(prompt: Any, embeds: Tensor | None, schedule: Any) -> int:
        """How many videos the one of the three that is given asks for."""
        if sum(given is not None for given in (prompt, embeds, schedule)) != 1:
            raise HeliosError("prompt, prompt_embeds, prompt_schedule: give exactly one of them.")
        if embeds is not None:
            return embeds.shape[0]
        return 1 if prompt is None or isinstance(prompt, str) else len(prompt)

    def embedded(self, prompt: Any, embeds: Tensor | None, name: str) -> Tensor:
        """``embeds`` where given, else the prompt's; ``name`` is the prompt's keyword."""
        if embeds is None:
            return self.encode(prompt)
        if embeds.ndim != 3 or embeds.shape[-1] != self.text_dim:
            raise HeliosError(f"{name}_embeds has shape {list(embeds.shape)}; it must be [B,512,{self.text_dim}].")
        return self.place(embeds)

    def negative(self, prompt: Any, embeds: Tensor | None, batch: int) -> Tensor:
        """The negative prompt, one for all or one for each; the empty one where none is given."""
        empty = "" if prompt is None and embeds is None else prompt
        repeated = [empty] * batch if isinstance(empty, str) else empty
        negative = self.embedded(repeated, embeds, "negative_prompt")
        if negative.shape[0] != batch:
            raise HeliosError(f"negative_prompt has a batch of {negative.shape[0]} for {batch} prompts; match them.")
        return negative
