"""What editors and ``help`` show of a method that passes its keywords on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def with_keywords_of(streamed: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Gives a method that passes its keywords on the signature that editors and ``help`` show."""

    def signed(method: Callable[..., R]) -> Callable[P, R]:
        method.__signature__ = inspect.signature(streamed)  # type: ignore[attr-defined]
        return method

    return signed
