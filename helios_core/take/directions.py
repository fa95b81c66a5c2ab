"""Directions: what may be said to a film while it is made, and what the film becomes by them.

A film begins with a :class:`Script`. Every direction is kept, in order, and :func:`directed` makes of the first script
and the directions the one that is in force: an ordinary prompt schedule, seed changes and anchors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import HeliosError, shortened
from .prompts import PromptSchedule, parse_schedule
from .seed_changes import MAX_SEED, SeedChanges

VERSION = 1
MOST_LETTERS = 10_000
LARGEST_BLEND = 1000
# Fields of each action besides ``do``: those that it needs, and those that it may have.
ACTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompt": (("text",), ("chunk", "blend")),
    "roll": (("chunk",), ("seed",)),
    "anchor": (("image",), ()),
    "undo": ((), ()),
    "pause": ((), ()),
    "continue": ((), ()),
    "stop": ((), ()),
}
# Those that change the film; the others change when it is made.
SHAPING = ("prompt", "roll", "anchor")


@dataclass(frozen=True)
class Direction:
    """One direction, as it was wished, or with everything settled as it is kept.

    Attributes:
        do: one of ``ACTIONS``.
        number: counts a film's directions, from 1; 0 for one that is only wished.
        chunk: from which chunk on it holds.
        text, blend: of a prompt.
        seed: of a roll.
        image: names the anchor's picture; ``content`` is its fingerprint.
        undoes: number of the direction that an undo takes back.
    """

    do: str
    number: int = 0
    chunk: int | None = None
    text: str | None = None
    blend: int | None = None
    seed: int | None = None
    image: str | None = None
    content: str | None = None
    undoes: int | None = None

    def kept(self) -> dict[str, Any]:
        """As JSON, without what it has not."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Script:
    """What a film consists of: its prompts, its seeds, and (image, fingerprint) of its anchors by first chunk."""

    schedule: PromptSchedule[str]
    seed: int | None = None
    seed_changes: SeedChanges = ()
    anchors: Mapping[int, tuple[str, str]] = field(default_factory=dict)


def directed(begun: Script, directions: Iterable[Direction]) -> Script:
    """The script that ``begun`` has become by ``directions``."""
    directions, script = list(directions), begun
    undone = {direction.undoes for direction in directions}
    for direction in directions:
        if direction.number not in undone and direction.do in SHAPING:
            script = _shaped(script, direction)
    return script


def _shaped(script: Script, direction: Direction) -> Script:
    chunk = direction.chunk
    assert chunk is not None
    if direction.do == "prompt":
        old = script.schedule
        rows = dict(old.rows) | {chunk: direction.text or ""}
        blends = dict(old.blends) | {chunk: old.blend if direction.blend is None else direction.blend}
        schedule = PromptSchedule(tuple(sorted(rows.items())), old.blend, tuple(sorted(blends.items())))
        return replace(script, schedule=schedule)
    if direction.do == "roll":
        # The film goes on with this seed: what was rolled behind it is discarded too.
        before = tuple(change for change in script.seed_changes if change[0] < chunk)
        return replace(script, seed_changes=(*before, (chunk, direction.seed or 0)))
    return replace(script, anchors={**script.anchors, chunk: (direction.image or "", direction.content or "")})


def read_direction(body: Any) -> Direction:
    """A direction as a client sends it, ``{"version": 1, "do": ACTION, ...}``.

    Raises:
        HeliosError: no such object, another version, an unknown action, a field that is missing, unknown or of another
            kind.
    """
    if not isinstance(body, Mapping):
        raise HeliosError("the direction is not a JSON object; send one like {'version': 1, 'do': 'pause'}.")
    if body.get("version") != VERSION:
        raise HeliosError(f"version={shortened(body.get('version'))} is unknown; send 'version': {VERSION}.")
    return _checked({name: value for name, value in body.items() if name != "version"})


def checked(direction: Direction) -> Direction:
    """A wished direction, with its text as the schedule holds it. Raises as :func:`read_direction`."""
    return _checked({name: value for name, value in direction.kept().items() if name != "number"})


def _checked(fields: Mapping[str, Any]) -> Direction:
    do = fields.get("do")
    if not isinstance(do, str) or do not in ACTIONS:
        raise HeliosError(f"do={shortened(do)} is no direction; use one of {', '.join(ACTIONS)}.")
    needed, possible = ACTIONS[do]
    unknown = sorted(str(name) for name in fields.keys() - {"do", *needed, *possible})
    if unknown:
        allowed = ", ".join((*needed, *possible)) or "nothing else"
        raise HeliosError(f"{do} has no field {shortened(unknown[0])}; it takes {allowed}.")
    values = {name: fields[name] for name in (*needed, *possible) if fields.get(name) is not None}
    missing = [name for name in needed if name not in values]
    if missing:
        raise HeliosError(f"{do} has no {missing[0]}; give one.")
    for name, most in (("chunk", None), ("blend", LARGEST_BLEND), ("seed", MAX_SEED)):
        if name in values:
            _check_whole(name, values[name], most)
    for name in ("text", "image"):
        if name in values:
            _check_text(name, values[name])
    if "text" in values:
        values["text"] = _line(values["text"])
    return Direction(do, **values)


def _check_whole(name: str, value: Any, most: int | None) -> None:
    if type(value) is not int or value < 0 or (most is not None and value > most):
        limits = "0 or more" if most is None else f"0 to {most}"
        raise HeliosError(f"{name}={shortened(value)} is not a whole number; give {limits}.")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise HeliosError(f"{name}={shortened(value)} is not text; send a string.")
    if len(value) > MOST_LETTERS:
        raise HeliosError(f"{name} has {len(value)} letters; use at most {MOST_LETTERS}.")
    if not value.strip():
        raise HeliosError(f"{name} is empty; write one.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise HeliosError(f"{name}={shortened(value)} is not Unicode text; send it as UTF-8.") from None


def _line(text: str) -> str:
    """A prompt on one line, such as a row of a schedule may have."""
    line = " ".join(text.split())
    if parse_schedule(f"0: {line}") != [(0, line)]:
        raise HeliosError(f"text {shortened(line)} would begin another row of the schedule; leave out ' / 7:'.")
    return line


def stored_directions(entries: Any) -> tuple[Direction, ...]:
    """The directions that a manifest keeps.

    Raises:
        HeliosError: they were edited, or are damaged.
    """
    found: list[Direction] = []
    try:
        for entry in entries if isinstance(entries, Sequence) else ():
            direction = Direction(**{name: value for name, value in entry.items() if name != "at"})
            _check_stored(direction, len(found) + 1)
            found.append(direction)
    except (HeliosError, TypeError, AttributeError) as error:
        raise HeliosError(
            f"direction {len(found) + 1} of the take cannot be read; set resume off to begin the film anew."
        ) from error
    return tuple(found)


def _check_stored(direction: Direction, number: int) -> None:
    needed, possible = ACTIONS.get(direction.do, ((), ()))
    wished = {name: getattr(direction, name) for name in ("do", *needed, *possible)}
    settled = type(direction.chunk) is int and direction.chunk >= 0 and direction.number == number
    texts = all(value is None or isinstance(value, str) for value in (direction.image, direction.content))
    undoes = direction.undoes is None or (direction.do == "undo" and type(direction.undoes) is int)
    if not settled or not texts or not undoes:
        raise HeliosError("it is not settled.")
    _checked(wished)
