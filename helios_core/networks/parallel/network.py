"""A network whose forwards all processes of a crew compute: process 0 asks, the others answer."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import HeliosError
from ..transformer import HeliosTransformer, PreparedHistory, PreparedText
from .crew import Crew, Order
from .decoder import serve
from .team import LostProcessError


class SharedNetwork:
    """Process 0's side: what a :class:`HeliosTransformer` is to those who sample with it."""

    def __init__(self, transformer: HeliosTransformer, crew: Crew):
        self._transformer, self._crew = transformer, crew
        self._numbers, self._next = {}, itertools.count()  # type: ignore[var-annotated]
        self._dropped: list[int] = []

    def prepare_text(self, text: Tensor) -> PreparedText:
        """See :meth:`HeliosTransformer.prepare_text`."""
        number = self._ordered("text", text)
        return self._known(number, self._transformer.prepare_text(text))

    def prepare_history(self, short: Tensor, mid: Tensor, long: Tensor) -> PreparedHistory:
        """See :meth:`HeliosTransformer.prepare_history`."""
        number = self._ordered("history", short, mid, long)
        return self._known(number, self._transformer.prepare_history(short, mid, long))

    def each(
        self, latents: Tensor, timestep: Tensor, texts: Sequence[PreparedText], history: PreparedHistory | None
    ) -> list[Tensor]:
        """See :meth:`HeliosTransformer.each`; two texts side by side where the crew has two halves."""
        self._ordered(
            "velocity",
            latents,
            timestep,
            texts=tuple(self._numbers[id(text)] for text in texts),
            history=None if history is None else self._numbers[id(history)],
        )
        with self._crew.forward():
            return _velocities(self._transformer, self._crew, latents, timestep, texts, history)

    def _ordered(self, kind: str, *tensors: Tensor, texts: tuple[int, ...] = (), history: int | None = None) -> int:
        number, dropped = next(self._next), tuple(self._dropped)
        del self._dropped[: len(dropped)]
        given = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        self._crew.order(Order(kind, number, texts, history, dropped, given), tensors)
        return number

    def _known(self, number: int, prepared):
        """``prepared`` by its number, which the others keep until nobody holds it here."""
        self._numbers[id(prepared)] = number
        weakref.finalize(prepared, partial(_forget, self._numbers, id(prepared), self._dropped))
        return prepared


def _forget(numbers: dict[int, int], place: int, dropped: list[int]) -> None:
    dropped.append(numbers.pop(place))


@torch.no_grad()
def follow(
    transformer: HeliosTransformer, crew: Crew, device: torch.device, decode: Callable[[Tensor], Tensor]
) -> None:
    """The other processes' side: does what process 0 asks for until its film ends; ``decode`` as for :func:`serve`.

    Raises:
        LostProcessError: another process ended or did not answer.
    """
    if crew.asked is not None:
        serve(crew.asked, crew.team.rank, decode)
        return
    known: dict[int | None, PreparedText | PreparedHistory | None] = {None: None}
    while True:
        order, tensors = crew.receive(device)
        for number in order.dropped:
            known.pop(number, None)
        if order.kind == "end":
            return
        try:
            if order.kind == "text":
                known[order.number] = transformer.prepare_text(*tensors)
            elif order.kind == "history":
                known[order.number] = transformer.prepare_history(*tensors)
            else:
                latents, timestep = tensors
                texts = [known[number] for number in order.texts]
                _velocities(transformer, crew, latents, timestep, texts, known[order.history])  # type: ignore[arg-type]
        except LostProcessError:
            raise
        except HeliosError:
            # Process 0 has met the same, says so, and ends the film.
            continue


def _velocities(
    transformer: HeliosTransformer,
    crew: Crew,
    latents: Tensor,
    timestep: Tensor,
    texts: Sequence[PreparedText],
    history: PreparedHistory | None,
) -> list[Tensor]:
    """The velocity under each text; all of them are there in process 0."""
    if crew.halves == 1:
        return transformer.each(latents, timestep, texts, history)
    if len(texts) == 1:
        return transformer.each(latents, timestep, texts, history) if crew.half == 0 else []
    return crew.paired(transformer(latents, timestep, texts[crew.half], history=history))
