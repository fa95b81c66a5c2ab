"""Core's layers, told apart by whether their own forward must bring their weights."""

from __future__ import annotations

from typing import Any


def with_held_elsewhere(operations: Any) -> Any:
    """``operations`` whose norms answer ``held_elsewhere``; the transformer asks before it reads their weights."""

    class Held:
        @property
        def held_elsewhere(self) -> bool:
            """Cast on use where memory is short, or waiting for a LoRA."""
            return self.comfy_cast_weights or bool(self.weight_function)  # type: ignore[attr-defined]

    class LayerNorm(Held, operations.LayerNorm):
        pass

    class RMSNorm(Held, operations.RMSNorm):
        pass

    return type(operations.__name__, (operations,), {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm})
