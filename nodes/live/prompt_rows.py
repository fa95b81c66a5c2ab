"""Which text is in force at which chunk, read from the queued graph: conditionings themselves carry no text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...helios_core.errors import HeliosError
from ...helios_core.take.prompts import parse_schedule
from ..adapters.schedule import parse_chunks

# Visits in all: nodes with several links would be walked once for every way up to them.
MOST_NODES = 2000
TEXTS = ("text", "value", "string", "prompt")
CONDITIONINGS = ("positive", "conditioning", "conditioning_1", "conditioning_to")

Graph = Mapping[str, Any]


def prompt_rows(graph: Graph, node: str) -> tuple[tuple[int, str], ...]:
    """(first chunk, text) of the schedule at a node's ``positive``; texts the graph does not show are left out."""
    try:
        rows = _rows(graph, _inputs(graph, node).get("positive"), iter(range(MOST_NODES)))
    except (HeliosError, TypeError, ValueError, AttributeError, LookupError, RecursionError):
        # The node that owns the text tells what is wrong with it; a render does not fail for its captions.
        return ()
    return tuple(sorted((first, text) for first, text in rows if text))


def _inputs(graph: Graph, node: str) -> Mapping[str, Any]:
    return graph.get(node, {}).get("inputs", {})


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _rows(graph: Graph, link: Any, budget: Iterator[int]) -> list[tuple[int, str]]:
    if not _is_link(link) or next(budget, None) is None:
        return []
    kind, inputs = graph.get(link[0], {}).get("class_type"), _inputs(graph, link[0])
    if kind == "HeliosPromptScheduleText":
        return parse_schedule(_text(graph, link, budget))
    if kind != "HeliosPromptSchedule":
        return [(0, _text(graph, link, budget))]
    rows = [name for name in inputs if name.startswith("rows.row_")]
    rows.sort(key=lambda name: int(name.removeprefix("rows.row_")))
    texts = [_text(graph, inputs[name], budget) for name in rows]
    first = inputs["first_chunks"]
    new = list(zip(parse_chunks(_text(graph, first, budget) if _is_link(first) else first), texts, strict=False))
    return [*_rows(graph, inputs.get("before"), budget), *new]


def _text(graph: Graph, link: Any, budget: Iterator[int]) -> str:
    """The first text on the way up from ``link``."""
    if not _is_link(link) or next(budget, None) is None:
        return ""
    inputs = _inputs(graph, link[0])
    for name in (*TEXTS, *CONDITIONINGS):
        value = inputs.get(name)
        found = value if isinstance(value, str) and name in TEXTS else _text(graph, value, budget)
        if found:
            return found.strip()
    return ""
