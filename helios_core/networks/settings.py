"""JSON that others wrote: parsed within bounds, and checked against the types that a dataclass declares."""

from __future__ import annotations

import contextlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import HeliosError, reason, shortened

T = TypeVar("T")
# Configurations and indices have kilobytes; parsed JSON takes several times the room of its text.
LARGEST = 10_000_000


def parse_object(text: str | bytes, what: str, remedy: str = "download it again") -> dict[str, Any]:
    """A JSON object.

    Args:
        what: what an error calls the text, beginning with its file.

    Raises:
        HeliosError: too long, no JSON, too deep, a number too long, or no object.
    """
    if len(text) > LARGEST:
        raise HeliosError(f"{what} has {len(text):,} bytes, at most {LARGEST:,} are read; {remedy}.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise HeliosError(f"{what} cannot be read, it is no JSON; {remedy}.") from None
    if not isinstance(content, dict):
        raise HeliosError(f"{what} cannot be read, it holds no JSON object; {remedy}.")
    return content


def read_object(path: Path, remedy: str = "download it again") -> dict[str, Any]:
    """A JSON object from a regular file.

    Raises:
        HeliosError: absent, no file, unreadable, or as for :func:`parse_object`.
    """
    try:
        # A pipe or a device would be read without end.
        if not path.is_file() and path.exists():
            raise HeliosError(f"{path} is no file; {remedy}.")
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise HeliosError(f"{path} is missing; {remedy}.") from None
    except OSError as error:
        raise HeliosError(f"{path} cannot be read ({reason(error)}); {remedy}.") from None
    return parse_object(text, str(path), remedy)


def readable_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that grows by a line at a time; what a kill cut off is left out, as is a missing file.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(line)
                if isinstance(content, dict):
                    yield content


def typed(cls: type[T], content: Mapping[str, Any], what: str, renamed: Mapping[str, str] | None = None) -> T:
    """A dataclass from the entries of ``content`` that it has fields for; lists become tuples.

    Args:
        renamed: the entry of a field whose name differs.

    Raises:
        HeliosError: an entry is not of its field's type, or a number is not finite.
    """
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        name = (renamed or {}).get(field.name, field.name)
        if name not in content:
            continue
        value = content[name]
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[field.name]):
            raise HeliosError(
                f"{what} has {name}={shortened(content[name])}, which must be {_named(hints[field.name])}; "
                "use the released file."
            )
        values[field.name] = value
    return cls(**values)


def check_range(what: str, name: str, value: float, low: float, high: float) -> None:
    """Raises HeliosError where a setting is not within ``low`` to ``high``."""
    if not low <= value <= high:
        raise HeliosError(
            f"{what} has {name}={shortened(value)}, which must be {low:g} to {high:g}; use the released file."
        )


def as_number(value: Any) -> float:
    """A setting that should be a number; NaN, which is in no range, where it is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value) else math.nan


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}


def _named(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_named, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} times "
        return f"a list of {count}{_named(parts[0])}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))
