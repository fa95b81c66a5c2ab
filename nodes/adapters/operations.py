"""Core's layers, told apart by whether their own forward must bring their weights, and with GGUF's packed ones."""

from __future__ import annotations

from typing import Any


def with_held_elsewhere(operations: Any) -> Any:
    """``operations`` whose norms answer ``held_elsewhere``; the transformer asks before it reads their weights.

    Where they are those of mixed precision, their Linear takes packed weights too.
    """

    class Held:
        @property
        def held_elsewhere(self) -> bool:
            """Cast on use where memory is short, or waiting for a LoRA."""
            return self.comfy_cast_weights or bool(self.weight_function)  # type: ignore[attr-defined]

    class LayerNorm(Held, operations.LayerNorm):
        pass

    class RMSNorm(Held, operations.RMSNorm):
        pass

    layers = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}
    if hasattr(operations, "_quant_config"):
        # Here, because it needs comfy-kitchen, which core does without where nothing is quantised.
        from .packed_weights import with_packed_weights

        layers["Linear"] = with_packed_weights(operations.Linear)
    return type(operations.__name__, (operations,), layers)
