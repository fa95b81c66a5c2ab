"""Prompt schedule: which prompt is in force at which chunk, with a linear blend after each change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..errors import HeliosError, shortened

DEFAULT_BLEND = 3
_NUMBER = re.compile(r"(?<!\d)(\d+)(?:~(\d+))?\s*:")
MOST_DIGITS = 9

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class PromptSchedule(Generic[T]):
    """Prompts by the chunk they begin at.

    Attributes:
        rows: (first chunk, prompt), the first row at chunk 0, first chunks rising. A prompt is whatever the caller
            blends: text embeddings, a conditioning.
        blend: chunks over which a new prompt takes over. At its chunk i of ``blend`` the mixture is
            i/(blend-1) new; 0 or 1 changes at once.
        blends: (first chunk, blend) of the rows that have their own.
    """

    rows: tuple[tuple[int, T], ...]
    blend: int = DEFAULT_BLEND
    blends: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for blend in (self.blend, *(own for _, own in self.blends)):
            if blend < 0:
                raise HeliosError(f"blend={blend} must be at least 0 chunks.")
        starts = [first for first, _ in self.rows]
        if not starts or starts[0] != 0:
            raise HeliosError(f"prompt schedule begins at chunk {starts[0] if starts else '?'}; its first row needs 0.")
        for before, after in pairwise(starts):
            if after <= before:
                raise HeliosError(
                    f"prompt schedule row at chunk {after} follows the row at chunk {before}; "
                    "put the rows in rising order, each chunk once."
                )

    def row_at(self, chunk: int) -> int:
        """Index of the row in force at ``chunk``; the last one stays to the end."""
        return max(i for i, (first, _) in enumerate(self.rows) if first <= chunk)

    def at(self, chunk: int, mix: Callable[[T, T, float], T]) -> T:
        """The prompt of ``chunk``; ``mix(previous, new, weight of the new)`` blends where a change is under way."""
        row = self.row_at(chunk)
        first, prompt = self.rows[row]
        position, blend = chunk - first, self.blend_of(first)
        if row == 0 or position >= blend - 1:
            return prompt
        return mix(self.rows[row - 1][1], prompt, position / (blend - 1))

    def blend_of(self, first: int) -> int:
        """Chunks over which the row that begins at ``first`` takes over."""
        return dict(self.blends).get(first, self.blend)

    def around(self, chunk: int) -> PromptSchedule[T]:
        """The one or two rows of which :meth:`at` makes the prompt of ``chunk``, as a schedule of their own."""
        row = self.row_at(chunk)
        first, prompt = self.rows[row]
        if row == 0 or chunk - first >= self.blend_of(first) - 1:
            return PromptSchedule(((0, prompt),))
        return PromptSchedule(((0, self.rows[row - 1][1]), (first, prompt)), self.blend_of(first))

    def encoded(self, encode: Callable[[T], S]) -> PromptSchedule[S]:
        """The same schedule of what ``encode`` makes of each prompt."""
        return PromptSchedule(tuple((first, encode(prompt)) for first, prompt in self.rows), self.blend, self.blends)


def mix_embeddings(previous: Tensor, new: Tensor, weight: float) -> Tensor:
    """Linear mixture of two text embeddings [B,L,D]; the shorter is padded with zero rows."""
    length = max(previous.shape[1], new.shape[1])
    padded = (torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[1])) for x in (previous, new))
    return torch.lerp(*padded, weight)


def parse_schedule(text: str) -> list[tuple[int, str]]:
    """``0: a boat / 7: a storm``, or one row a line -> [(0, "a boat"), (7, "a storm")].

    Text without row numbers is one row. ``7~2: a storm`` says that this row takes over within 2 chunks.

    Raises:
        HeliosError: text before the first row, or a row without a prompt.
    """
    return [(first, prompt) for first, _, prompt in _parsed(text)]


def schedule_from_text(text: str, blend: int = DEFAULT_BLEND) -> PromptSchedule[str]:
    """The schedule that a text tells; ``blend`` for the rows that name none. Raises as :func:`parse_schedule`."""
    rows = _parsed(text)
    own = tuple((first, own) for first, own, _ in rows if own is not None)
    return PromptSchedule(tuple((first, prompt) for first, _, prompt in rows), blend, own)


def schedule_text(schedule: PromptSchedule[str]) -> str:
    """What :func:`schedule_from_text` reads as ``schedule``, whatever blend it is given: one row a line."""
    (first, prompt), *later = schedule.rows
    if not later and not prompt:
        return ""
    return "\n".join([f"{first}: {prompt}", *(f"{at}~{schedule.blend_of(at)}: {text}" for at, text in later)])


def _parsed(text: str) -> list[tuple[int, int | None, str]]:
    """(first chunk, its own blend, prompt) of every row."""
    starts = _row_starts(text)
    if not starts:
        return [(0, None, text.strip())]
    long = [number for _, match in starts for number in match.groups("") if len(number) > MOST_DIGITS]
    if long:
        raise HeliosError(f"prompt schedule has a row at chunk {shortened(long[0], 20)}; no film has that many chunks.")
    if text[: starts[0][0]].strip():
        raise HeliosError(
            f"prompt schedule has text before its first row ({shortened(text.strip(), 40)}); begin it with '0: '."
        )
    ends = [start for start, _ in starts[1:]] + [len(text)]
    rows = [
        (int(m[1]), None if m[2] is None else int(m[2]), text[m.end() : end].strip())
        for (_, m), end in zip(starts, ends, strict=True)
    ]
    empty = [first for first, _, prompt in rows if not prompt]
    if empty:
        raise HeliosError(f"prompt schedule row {empty[0]} has no prompt; write one after '{empty[0]}:'.")
    return rows


def _row_starts(text: str) -> list[tuple[int, re.Match[str]]]:
    """Where rows begin, each with its number: after a line break, or after a slash that follows a space.

    Looks back from every number, over each space once: a pattern of both would go over long spaces at every line.
    """
    found = []
    for match in _NUMBER.finditer(text):
        before = match.start()
        while before and text[before - 1].isspace():
            before -= 1
        if before > 1 and text[before - 1] == "/" and text[before - 2].isspace():
            found.append((before - 1, match))
        elif not before or "\n" in text[before : match.start()]:
            found.append((before, match))
    return found
