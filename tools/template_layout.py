"""Where everything stands in a template: notes on top, columns by role, titled groups. Plain arithmetic, no browser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count

MARGIN = 16.0  # from a group's frame to its nodes
GROUP_TITLE = 36.0  # height of a group's title bar
NODE_TITLE = 30.0  # drawn above a node's position
NODE_GAP = 44.0  # the new node design draws nodes taller, by a row for the pack's name
GROUP_GAP = 30.0
COLUMN_GAP = 44.0
# A link past a column runs above it, each output's on a lane of its own.
LANE_GAP, LANE_SHIFT = 14.0, 5.0
LETTER, LINE, NOTE_FRAME = 6.6, 25.0, 60.0  # of a note's text, in the units of the canvas
HEADING = 2.0  # as large as that; all that can be read at the zoom which a template opens with


@dataclass(frozen=True)
class Group:
    """A titled frame: the nodes of these class types, in this order and then by id."""

    title: str
    color: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A Markdown note above the graph."""

    title: str
    text: str

    def height(self, width: float) -> float:
        """Room for the text at this width."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        sizes = [HEADING if line.startswith("#") else 1.0 for line in lines]
        rows = (
            size * math.ceil(len(line) * LETTER * size / (width - 40)) for size, line in zip(sizes, lines, strict=True)
        )
        return NOTE_FRAME + sum(rows) * LINE


@dataclass(frozen=True)
class Column:
    """Groups from top to bottom, all nodes `width` wide, or as the widest of them needs."""

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
    """Boxes of nodes (by id), groups and notes; `routes` are the points that links to (node, input) pass through."""

    nodes: dict[str, Box] = field(default_factory=dict)
    routes: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
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
        ValueError: a node whose class type stands in no group.
    """
    steps = [(column.width, groups) for column in columns for groups in _in_turn(graph, _contents(graph, column))]
    contents = _numbered([groups for _, groups in steps])
    placed = {node for groups in contents for _, nodes in groups for node in nodes}
    if placed != set(graph):
        strange = sorted({graph[node]["class_type"] for node in set(graph) - placed})
        raise ValueError(f"no group has {', '.join(strange)}: add it to one")
    wanted = {node: max(least[node][1], heights.get(graph[node]["class_type"], 0.0)) for node in graph}

    layout, spans = Layout(), dict[str, tuple[float, float]]()
    left = 0.0
    for (least_width, _), groups in zip(steps, contents, strict=True):
        nodes = [node for _, nodes in groups for node in nodes]
        width = max(least_width, *(least[node][0] for node in nodes))
        _stack(layout, groups, wanted, left, width)
        spans |= dict.fromkeys(nodes, (left, left + width + 2 * MARGIN))
        left += width + 2 * MARGIN + COLUMN_GAP
    lanes = _route(layout, graph, spans)
    _head(layout, notes, left - COLUMN_GAP, -(lanes + 1) * LANE_GAP)
    return layout


def _route(layout: Layout, graph: Mapping[str, dict], spans: Mapping[str, tuple[float, float]]) -> int:
    """Leads every link that would pass behind a column above it; returns how many lanes that takes."""
    starts = sorted({left for left, _ in spans.values()})
    lanes: dict[tuple[str, int], int] = {}
    for node, content in graph.items():
        for name, value in content["inputs"].items():
            if not isinstance(value, list) or starts.index(spans[node][0]) - starts.index(spans[value[0]][0]) <= 1:
                continue
            lane = lanes.setdefault((value[0], value[1]), len(lanes))
            height, shift = -(lane + 1) * LANE_GAP, COLUMN_GAP / 2 - LANE_SHIFT * lane
            layout.routes[node, name] = [(spans[value[0]][1] + shift, height), (spans[node][0] - shift, height)]
    return len(lanes)


def _head(layout: Layout, notes: tuple[Note, ...], width: float, bottom: float) -> None:
    """Notes side by side over the whole width, above `bottom`."""
    each = (width - (len(notes) - 1) * GROUP_GAP) / len(notes)
    height = max(note.height(each) for note in notes)
    for index, note in enumerate(notes):
        box = Box(index * (each + GROUP_GAP), bottom - GROUP_GAP - height, each, height)
        layout.notes.append((note, box))


def _contents(graph: Mapping[str, dict], column: Column) -> list[tuple[Group, list[str]]]:
    """The groups of a column that have nodes in this graph, with the ids of those."""
    found = []
    for group in column.groups:
        nodes = [node for node in graph if graph[node]["class_type"] in group.classes]
        nodes.sort(key=lambda node: (group.classes.index(graph[node]["class_type"]), _is_last(graph[node]), int(node)))
        if nodes:
            found.append((group, nodes))
    return found


def _in_turn(graph: Mapping[str, dict], groups: list[tuple[Group, list[str]]]) -> list[list[tuple[Group, list[str]]]]:
    """The same split into columns, so that what a node is linked from stands left of it."""
    inside = {node for _, nodes in groups for node in nodes}

    def turn(node: str) -> int:
        origins = (value[0] for value in graph[node]["inputs"].values() if isinstance(value, list))
        return max((turn(origin) + 1 for origin in origins if origin in inside), default=0)

    turns = {node: turn(node) for node in inside}
    split = [[(group, [node for node in nodes if turns[node] == step]) for group, nodes in groups]
             for step in range(max(turns.values(), default=-1) + 1)]  # fmt: skip
    return [[(group, nodes) for group, nodes in column if nodes] for column in split]


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
