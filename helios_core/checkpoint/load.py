"""Builds a transformer from a checkpoint, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HeliosError, shortened
from ..networks.transformer import HeliosTransformer
from ..networks.transformer.fp8 import narrowed, use_fp8
from .foreign import recognise, refuse_foreign
from .quantised import Decoder, Scaled, decoders, holds_numbers, layer_formats, shape_of, without_companions
from .source import TransformerSource

NAMES_SHOWN, LONGEST_NAME = 3, 160
# The reference keeps these float32 whatever the model's type is.
FLOAT32_PARTS = ("time_embedding.", "modulation", "norm3.", "history_key_scale")


def load_transformer(
    source: TransformerSource,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    fp8_matmul: bool = False,
) -> HeliosTransformer:
    """The transformer of a released folder or single file, ready to run.

    Tensors that are already of ``dtype`` stay memory-mapped on the CPU. Scaled fp8 and GGUF are multiplied out; with
    ``fp8_matmul`` the matrices of all but the first and last blocks stay, or become, fp8.

    Raises:
        HeliosError: missing, extra or misshaped tensors; a damaged file; a foreign model.
    """
    model = without_data(source, dtype)
    state = source.state_dict()
    check_state_dict(model, state, source.path, metadata=source.metadata)
    decode = decoders(state, source.metadata, source.path)
    narrow = {f"{layer}.weight" for layer in use_fp8(model)} if fp8_matmul else set()
    placed: dict[str, Tensor] = {}
    for key, tensor in without_companions(state).items():
        if key in narrow:
            placed |= _placed_fp8(key, tensor, device, decode.get(key))
        else:
            placed[key] = place(key, tensor, dtype, device, decode.get(key))
    model.load_state_dict(placed, assign=True)
    return model.requires_grad_(False).eval()


def without_data(source: TransformerSource, dtype: torch.dtype) -> HeliosTransformer:
    """The transformer as its configuration says it is, on the meta device."""
    with torch.device("meta"):
        return HeliosTransformer(**source.config.to_dict(), dtype=dtype)


def _placed_fp8(key: str, tensor: Tensor, device: torch.device | str, decode: Decoder | None) -> dict[str, Tensor]:
    """A matrix and its scale; one that is e4m3 in the file stays as it is."""
    if isinstance(decode, Scaled) and isinstance(decode.scale, float) and tensor.dtype == torch.float8_e4m3fn:
        return {key: tensor.to(device), f"{key}_scale": torch.tensor(decode.scale, device=device)}
    content = narrowed(place(key, tensor, torch.float32, device, decode))
    return {key: content["weight"], f"{key}_scale": content["weight_scale"]}


def place(
    key: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str = "cpu", decode: Decoder | None = None
) -> Tensor:
    """One tensor in its run-time precision (float32 for the parts the reference keeps so).

    ``decode`` is that of a quantised weight. Nothing is copied where type and device are right already.
    """
    target = torch.float32 if keeps_float32(key) else dtype
    if decode is not None:
        return decode(tensor.to(device), target)
    return tensor.to(device=device, dtype=target)


def keeps_float32(key: str) -> bool:
    """Whether the reference keeps this parameter (our name) float32 in every precision."""
    return any(part in key for part in FLOAT32_PARTS)


def check_state_dict(
    model: torch.nn.Module,
    state: Mapping[str, Tensor],
    source: Path | str,
    kind: str = "Helios transformer",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Compares names, shapes and kinds of number with what the model needs; ``kind`` is what the message calls it.

    Scales and format markers of quantised layers are no concern of this check.

    Raises:
        HeliosError: one sentence with the count and the first names of each kind of difference.
    """
    forms = layer_formats(state, metadata or {}, Path(source))
    state = without_companions(state)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if kind == "Helios transformer" and recognise(state) is not None and wanted.keys() - state.keys():
        refuse_foreign(state, Path(source))
    if not wanted.keys() & state.keys():
        raise HeliosError(f"{source} is not a {kind}: none of its {len(state)} tensors has a name that one has.")
    faults = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "misshaped": [
            f"{key} {list(state[key].shape)} instead of {list(shape)}"
            for key, shape in wanted.items()
            if key in state and shape_of(key, state[key], forms) not in (None, shape)
        ],
        "whole-number": [
            f"{key} of {state[key].dtype}"
            for key in wanted
            if key in state and not holds_numbers(key, state[key], forms)
        ],
    }
    told = [f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names]
    if told:
        raise HeliosError(f"{source} does not fit a {kind}: {', '.join(told)} tensors; download it again.")


def quoted(name: str) -> str:
    """A tensor's name as it is, where that is short and printable."""
    return name if name.isprintable() and len(name) <= LONGEST_NAME else shortened(name, LONGEST_NAME)


def _first(names: list[str]) -> str:
    return ", ".join(quoted(name) for name in names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
