"""Seed changes: from which chunk on a film takes another seed."""

from __future__ import annotations

import re

from ..errors import HeliosError

MAX_SEED = 0xFFFFFFFFFFFFFFFF
_CHANGE = re.compile(r"0*([0-9]{1,20})\s*:\s*0*([0-9]{1,20})")

SeedChanges = tuple[tuple[int, int], ...]
"""(first chunk, seed) in rising order."""


def parse_seed_changes(text: str) -> SeedChanges:
    """``"7: 123, 9: 5"``, or one change a line -> ((7, 123), (9, 5)).

    Raises:
        HeliosError: not a list of changes, a chunk that is named twice, a seed above 64 bits.
    """
    found: dict[int, int] = {}
    for part in re.split(r"[,;\n]", text):
        if not part.strip():
            continue
        match = _CHANGE.fullmatch(part.strip())
        if match is None:
            raise HeliosError(
                f"seed_changes has {part.strip()[:40]!r}, which is not a chunk and its seed; write it like '7: 123'."
            )
        chunk, seed = (int(number) for number in match.groups())
        if chunk in found:
            raise HeliosError(f"seed_changes names chunk {chunk} twice; keep one seed for it.")
        if seed > MAX_SEED:
            raise HeliosError(f"seed_changes has seed {seed} at chunk {chunk}; the largest is {MAX_SEED}.")
        found[chunk] = seed
    return tuple(sorted(found.items()))


def seed_changes_text(changes: SeedChanges) -> str:
    """What :func:`parse_seed_changes` reads as ``changes``."""
    return ", ".join(f"{chunk}: {seed}" for chunk, seed in changes)


def seed_at(changes: SeedChanges, chunk: int, seed: int | None) -> int | None:
    """The seed in force at ``chunk``: that of the last change up to it, ``seed`` before the first."""
    return next((changed for first, changed in reversed(changes) if first <= chunk), seed)
