"""A film that is directed while it is made: its chunks, seeds and anchors are those of the director's script."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..errors import HeliosError
from ..settings import read_object
from .directions import Direction, Script, stored_directions
from .director import Director
from .film import ChunkSource, Cue, Film
from .seed_changes import seed_at
from .store import ChunkStore
from .take import Take

# Of a manifest's settings: the key of a directed film's first chunk before any direction.
BEGUN = "begun"


class DirectedSource(ChunkSource, Protocol):
    """Makes chunks whose prompts may change before each."""

    def begin(self, chunk: int, script: Script) -> Tensor | None:
        """Puts what ``script`` says of ``chunk`` in force for the next calls; the anchor [1,16,1,h,w], normalised
        model space, where another one holds from this chunk on."""

    def check(self) -> None:
        """Raises where the film is interrupted."""


@dataclass(frozen=True, kw_only=True)
class DirectedFilm(Film):
    """The chunks of ``source`` that follow ``start`` as ``director`` says; a take must keep them."""

    source: DirectedSource
    director: Director

    def cues(self, take: Take | None) -> Iterator[Cue]:
        assert take is not None
        following = self.start.chunk
        while (beginning := self.director.begin(self.source.check)) is not None:
            chunk, script = beginning.chunk, beginning.script
            anchor = self.source.begin(chunk, script)
            following = chunk + 1
            yield Cue(chunk, seed_at(script.seed_changes, chunk, script.seed), anchor)
        if self.director.cursor != following:  # it ended where a chunk was about to be rolled again
            take.back_to(self.director.cursor)

    def wants(self, chunk: int) -> bool:
        return self.director.wants(chunk)


def directed_before(store: ChunkStore, name: str, key: str, first: int) -> tuple[tuple[Direction, ...], int]:
    """The directions that take ``name`` keeps, and how many of its chunks, from ``first`` on, were finished.

    None and 0 where there is no such take, or where it began otherwise than with ``key``, the first chunk's before any
    direction.

    Raises:
        HeliosError: its directions are damaged.
    """
    manifest: Mapping[str, Any] = {}
    with contextlib.suppress(HeliosError):  # there is none, or it is not ours
        manifest = read_object(store.takes / f"{name}.json")
    settings = manifest.get("settings")
    if not isinstance(settings, dict) or settings.get(BEGUN) != key:
        return (), 0
    made = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(_numbers(manifest), itertools.count(first), strict=False)
    )
    return stored_directions(manifest.get("directions")), len(list(made))


def _numbers(manifest: Mapping[str, Any]) -> list[Any]:
    entries = manifest.get("chunks")
    return [entry.get("chunk") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
