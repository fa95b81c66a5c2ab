"""The prompt that is being validated, read along its links.

Core's ``validate_inputs`` sees the values of one node's own widgets. A prompt handler (``add_on_prompt_handler``) sees
the whole prompt just before, in the same task; what it keeps here is what the nodes' checks read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from comfy_execution.utils import get_executing_context

T = TypeVar("T")
# Longer ways than any graph has; a circle ends there too.
MOST_LINKS = 1000
SWITCH = "ComfySwitchNode"  # core's, which hands one of two inputs on
PRIMITIVES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")

_prompt: ContextVar[Mapping[str, Any] | None] = ContextVar("helios_prompt", default=None)


def keep_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """A prompt handler: keeps the prompt of a request, which it returns as it is."""
    prompt = request.get("prompt") if isinstance(request, dict) else None
    _prompt.set(prompt if isinstance(prompt, dict) else None)
    return request


def node_in_validation() -> Wired | None:
    """The node that core is validating; None where no prompt was handed over."""
    prompt, context = _prompt.get(), get_executing_context()
    return None if prompt is None or context is None else _wired(prompt, context.node_id)


@dataclass(frozen=True)
class Wired:
    """One node of a prompt. Values come as clients wrote them: of any kind, or missing."""

    prompt: Mapping[str, Any]
    id: str
    kind: str
    inputs: Mapping[str, Any]

    def source(self, name: str) -> tuple[Wired, int] | None:
        """The node and output slot that an input comes from, past core's switch; None where it is not linked."""
        step = self._link(name)
        for _ in range(MOST_LINKS):
            taken = None if step is None or step[0].kind != SWITCH else step[0]._taken()
            if step is None or taken is None:
                return step
            step = step[0]._link(taken)
        return None

    def _taken(self) -> str | None:
        """The input that a switch hands on; None where only running the graph would tell."""
        switch = self.value("switch", bool)
        return None if switch is None else "on_true" if switch else "on_false"

    def _link(self, name: str) -> tuple[Wired, int] | None:
        link = self.inputs.get(name)
        if not isinstance(link, list) or len(link) != 2 or not isinstance(link[0], str) or type(link[1]) is not int:
            return None
        origin = _wired(self.prompt, link[0])
        return None if origin is None else (origin, link[1])

    def value(self, name: str, kind: type[T], default: T | None = None) -> T | None:
        """The value of a widget, its default where it is left out; None where only running the graph would tell."""
        if name not in self.inputs:
            return default
        found: Any = self.inputs[name]
        origin = self._link(name)
        if origin is not None and origin[0].kind in PRIMITIVES:
            found = origin[0].inputs.get("value")
        if kind is float and type(found) is int:
            found = float(found)
        return found if type(found) is kind else None

    def consumers(self) -> list[Wired]:
        """The nodes that are linked to any of its outputs."""
        return [node for node in self.all_nodes() if any(self._feeds(node, name) for name in node.inputs)]

    def all_nodes(self) -> Iterator[Wired]:
        """The nodes of the prompt, as far as they are nodes."""
        for key in self.prompt:
            node = _wired(self.prompt, key)
            if node is not None:
                yield node

    def _feeds(self, node: Wired, name: str) -> bool:
        link = node.inputs[name]
        return isinstance(link, list) and len(link) == 2 and link[0] == self.id

    def upstream(self, name: str) -> Iterator[tuple[Wired, int]]:
        """The node and slot that an input comes from, and on through nodes that have an input of the same name."""
        step = self.source(name)
        for _ in range(MOST_LINKS):
            if step is None:
                return
            yield step
            step = step[0].source(name)


def _wired(prompt: Mapping[str, Any], key: Any) -> Wired | None:
    node = prompt.get(key) if isinstance(key, str) else None
    if not isinstance(node, dict):
        return None
    kind, inputs = node.get("class_type"), node.get("inputs")
    return Wired(prompt, key, kind, inputs) if isinstance(kind, str) and isinstance(inputs, dict) else None
