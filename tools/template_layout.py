"""Where everything stands in a template: columns by role, titled groups, notes. Plain arithmetic, no browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count

MARGIN = 20.0  # from a group's frame to its nodes
GROUP_TITLE = 36.0  # height of a group's title bar
NODE_TITLE = 30.0  # drawn above a node's position
NODE_GAP = 44.0  # the new node design draws nodes taller, by a row for the pack's name
GROUP_GAP = 30.0
COLUMN_GAP = 50.0


@dataclass(frozen=True)
class Group:
    """A titled frame: the nodes of these class types, in this order and then by id."""

    title: str
    color: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A Markdown note at the foot of a column."""

    title: str
    text: str
    column: int = 0
    height: float = 200.0


@dataclass(frozen=True)
class Column:
    """Groups from top to bottom, all nodes `width` wide; notes follow."""

    width: float
    groups: tuple[Group, ...] = ()


@dataclass
class Box:
    """A rectangle on the canvas; a node's title bar lies above it."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Layout:
    """Boxes of nodes (by id), groups and notes."""

    nodes: dict[str, Box] = field(default_factory=dict)
    groups: list[tuple[Group, Box]] = field(default_factory=list)
    notes: list[tuple[Note, Box]] = field(default_factory=list)


def arrange(
    graph: Mapping[str, dict],
    least: Mapping[str, tuple[float, float]],
    columns: tuple[Column, ...],
    notes: tuple[Note, ...],
    heights: Mapping[str, float],
) -> Layout:
    """Lay an API-format graph out.

    Args:
        least: the smallest size of each node.
        heights: what nodes of a class should have at least, e.g. room for a text.

    Raises:
        ValueError: a node whose class type stands in no group, or that is wider than its column.
    """
    contents = _numbered([_contents(graph, column) for column in columns])
    placed = {node for groups in contents for _, nodes in groups for node in nodes}
    if placed != set(graph):
        strange = sorted({graph[node]["class_type"] for node in set(graph) - placed})
        raise ValueError(f"no group has {', '.join(strange)}: add it to one")
    wanted = {node: max(least[node][1], heights.get(graph[node]["class_type"], 0.0)) for node in graph}
    column_notes = [[note for note in notes if note.column == index] for index in range(len(columns))]

    layout = Layout()
    left = 0.0
    for column, groups, below in zip(columns, contents, column_notes, strict=True):
        if not groups and not below:
            continue
        wide = [node for _, nodes in groups for node in nodes if least[node][0] > column.width]
        if wide:
            raise ValueError(f"node {wide[0]} needs {least[wide[0]][0]:g} and its column has {column.width:g}")
        _stack(layout, groups, below, wanted, left, column.width)
        left += column.width + 2 * MARGIN + COLUMN_GAP
    return layout


def _contents(graph: Mapping[str, dict], column: Column) -> list[tuple[Group, list[str]]]:
    """The groups of a column that have nodes in this graph, with the ids of those."""
    found = []
    for group in column.groups:
        nodes = [node for node in graph if graph[node]["class_type"] in group.classes]
        nodes.sort(key=lambda node: (group.classes.index(graph[node]["class_type"]), _is_last(graph[node]), int(node)))
        if nodes:
            found.append((group, nodes))
    return found


def _numbered(contents: list[list[tuple[Group, list[str]]]]) -> list[list[tuple[Group, list[str]]]]:
    """The same with the groups' titles numbered in reading order."""
    numbers = count(1)
    return [
        [(replace(group, title=f"{next(numbers)} · {group.title}"), nodes) for group, nodes in column]
        for column in contents
    ]


def _is_last(node: Mapping) -> bool:
    """What is seldom changed stands below its like."""
    return node.get("_meta", {}).get("title", "").startswith("Negative")


def _stack(
    layout: Layout,
    groups: list[tuple[Group, list[str]]],
    notes: list[Note],
    heights: Mapping[str, float],
    left: float,
    width: float,
) -> None:
    """Add one column to `layout`, from top to bottom."""
    y = 0.0
    for group, nodes in groups:
        top = y
        y += GROUP_TITLE
        for node in nodes:
            y += NODE_TITLE
            layout.nodes[node] = Box(left + MARGIN, y, width, heights[node])
            y += heights[node] + NODE_GAP
        layout.groups.append((group, Box(left, top, width + 2 * MARGIN, y - top)))
        y += GROUP_GAP
    for note in notes:
        y += NODE_TITLE
        layout.notes.append((note, Box(left, y, width + 2 * MARGIN, note.height)))
        y += note.height + GROUP_GAP
