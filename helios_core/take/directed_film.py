"""A film that is directed while it is made: its chunks, seeds and anchors are those of the director's script."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ..errors import HeliosError
from ..networks.settings import read_object
from .directions import Direction, Script, stored_directions
from .director import Director
from .film import ChunkSource, Cue, Film
from .prompts import schedule_from_text, schedule_text
from .seed_changes import SeedChanges, seed_at, seed_changes_text
from .store import ChunkStore
from .take import Take

# Of a manifest's settings: the key of a directed film's first chunk before any direction.
BEGUN = "begun"
MADE = "made"  # the first chunk that had not been made when the film was gone on with, or rolled again
# Of a finished file's metadata: the film as it was directed.
DIRECTED = "helios_directed"


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
    reached = settings.get(MADE)
    before = reached - first if type(reached) is int else 0
    return stored_directions(manifest.get("directions")), max(len(list(made)), before)


def begun_director(
    record: Take, script: Script, key: str, first: int, end: int, look: Callable[[str], str], texts: bool = True
) -> Director:
    """The director of the film that ``record`` keeps, with what an earlier run of it was told where it resumes.

    Args:
        key: as for :func:`directed_before`.
        end, look: as for :class:`Director`.
        texts: whether directions may be written to the manifest.

    Raises:
        HeliosError: what an earlier run was told is damaged, or cannot be followed any more.
    """
    earlier, made = directed_before(record.store, record.name, key, first) if record.resume else ((), 0)
    director = Director(script, first, end, earlier, made, partial(keep_direction, record, texts), look)
    settings = {BEGUN: key, MADE: first + made, **settings_of(director.script, texts)}
    record.begin_directing([direction.kept() for direction in earlier], **settings)
    return director


def _numbers(manifest: Mapping[str, Any]) -> list[Any]:
    entries = manifest.get("chunks")
    return [entry.get("chunk") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def texts_of(script: Script) -> dict[str, str]:
    """The film as the texts of which it can be made again."""
    return {"schedule": schedule_text(script.schedule), "seed_changes": seed_changes_text(script.seed_changes)}


def metadata_of(script: Script) -> dict[str, Any]:
    """What a directed film's file says of it: its texts, and the names of its anchors' pictures by chunk."""
    anchors = {str(chunk): image for chunk, (image, _) in script.anchors.items()}
    return {DIRECTED: {**texts_of(script), "anchors": anchors}}


def settings_of(script: Script, texts: bool = True) -> dict[str, Any]:
    """What changes by directions in a manifest's settings; with its ``texts``."""
    rows = {"rows": [list(row) for row in script.schedule.rows]} if texts else {}
    return {**rows, "seed_changes": [list(change) for change in script.seed_changes]}


def keep_direction(take: Take, texts: bool, direction: Direction, script: Script) -> None:
    """Keeps a direction in the take's manifest, where ``texts`` may be written. For a :class:`Director`."""
    discarded = direction.chunk if direction.do == "roll" else None
    rolled = {} if discarded is None else {MADE: discarded}
    take.direct(direction.kept() if texts else None, discarded, **settings_of(script, texts), **rolled)


def begun_script(text: str, blend: int, seed: int | None, seed_changes: SeedChanges) -> Script:
    """What a directed film begins with: a prompt, or a schedule as text.

    Raises:
        HeliosError: no schedule, or an empty one.
    """
    schedule = schedule_from_text(text, blend)
    if not schedule.rows[0][1]:
        raise HeliosError("text is empty; write what the film begins with.")
    return Script(schedule, seed, seed_changes)
