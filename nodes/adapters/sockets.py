"""What a node's inputs may hold: core checks the values of widgets, but passes anything to a socket without a link."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import comfy.samplers
from comfy_api.latest import io
from comfy_api.latest._io import WidgetInput
from torch import Tensor

from ...helios_core.errors import HeliosError, shortened
from ...helios_core.take.history import History

TEXT_TYPES = ("STRING", "COMBO")


class Least(float):
    """The lower limit of a FLOAT input that NaN does not pass.

    Core refuses what is smaller than an input's ``min``, and NaN is smaller than nothing. An own ``validate_inputs``
    would take over all limits of the inputs that it names, and report each fault under every one of them.
    """

    def __gt__(self, value: float) -> bool:
        return not value >= float(self)


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], dict) for entry in value
    )


def _is_audio(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("waveform"), Tensor) and "sample_rate" in value


def _has(name: str) -> Callable[[Any], bool]:
    return lambda value: hasattr(value, name)


_SOCKETS: dict[str, Callable[[Any], bool]] = {
    "MODEL": _has("model_options"),
    "CLIP": _has("tokenize"),
    "VAE": lambda value: hasattr(value, "decode") and hasattr(value, "encode") and not isinstance(value, str | bytes),
    "CONDITIONING": _is_conditioning,
    "LATENT": lambda value: isinstance(value, dict) and isinstance(value.get("samples"), Tensor),
    "SAMPLER": lambda value: isinstance(value, comfy.samplers.Sampler),
    "HELIOS_HISTORY": lambda value: isinstance(value, History),
    "IMAGE": lambda value: isinstance(value, Tensor),
    "VIDEO": _has("get_components"),
    "AUDIO": _is_audio,
    "UPSCALE_MODEL": lambda value: hasattr(value, "patcher") and hasattr(value, "scale"),
    "INTERP_MODEL": _has("load_device"),
}


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose ``execute`` refuses values that its inputs cannot hold before it does anything."""
    execute = node.execute.__func__  # type: ignore[attr-defined]

    @functools.wraps(execute)
    def wrapper(cls: type[io.ComfyNode], **values: Any) -> Any:
        for name, types, value in _given(cls.define_schema().inputs, values):
            check_value(name, types, value)
        return execute(cls, **values)

    node.execute = classmethod(wrapper)  # type: ignore[method-assign, assignment]
    return node


def _given(inputs: Iterable[io.Input], values: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each value with its input's name and types; those of a growing input one by one."""
    for declared in inputs:
        value = values.get(declared.id)
        if isinstance(declared, io.Autogrow.Input):
            types = declared.template.input.get_io_type()
            yield from ((f"{declared.id}.{name}", types, row) for name, row in (value or {}).items() if row is not None)
        elif declared.id in values and not _is_absent(declared, value):
            yield declared.id, declared.get_io_type(), value


def input_names(node: type[io.ComfyNode]) -> set[str]:
    """Every name that a node declares, those of growing inputs one by one."""
    names = set()
    for declared in node.define_schema().inputs:
        if isinstance(declared, io.Autogrow.Input):
            names |= {f"{declared.id}.{name}" for name in declared.template.names}
        else:
            names.add(declared.id)
    return names


def _is_absent(declared: io.Input, value: Any) -> bool:
    """Whether an optional socket was given nothing; a widget that is left out is not among the values at all."""
    return value is None and declared.optional and not isinstance(declared, WidgetInput)


def check_value(name: str, types: str, value: Any) -> None:
    """Refuses what none of an input's types (``"VIDEO,IMAGE"``) can be.

    Raises:
        HeliosError: another kind of value, NaN or an infinity.
    """
    kinds = [kind for kind in types.split(",") if kind in _SOCKETS]
    if kinds and not any(_SOCKETS[kind](value) for kind in kinds):
        raise HeliosError(
            f"{name} is {shortened(value)}, not a {' or '.join(kinds)}; connect the output of a node that makes one."
        )
    if types in ("INT", "FLOAT") and isinstance(value, float) and not math.isfinite(value):
        raise HeliosError(f"{name}={value} is not a finite number; give one within the input's limits.")
    if types in TEXT_TYPES:
        check_text(name, value)


def check_text(name: str, value: Any) -> None:
    """Refuses what is not text, where core let a list or nothing through."""
    if not isinstance(value, str):
        raise HeliosError(f"{name}={shortened(value)} is not text; write it, or choose one from the list.")
