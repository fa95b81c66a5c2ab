"""Builds a transformer from a checkpoint, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HeliosError
from ..transformer import HeliosTransformer, TransformerConfig
from .folder import ReleasedFolder, read_tensors, weight_files
from .names import from_diffusers

NAMES_SHOWN = 3
# The reference keeps these float32 whatever the model's type is.
FLOAT32_PARTS = ("time_embedding.", "modulation", "norm3.", "history_key_scale")


def load_transformer(
    folder: ReleasedFolder, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> HeliosTransformer:
    """The transformer of a released folder, ready to run.

    Raises:
        HeliosError: missing, extra or misshaped tensors; a damaged file; a foreign model.
    """
    config = TransformerConfig.from_dict(folder.transformer)
    state = transformer_state_dict(folder)
    with torch.device("meta"):
        model = HeliosTransformer(**config.to_dict(), dtype=dtype)
    check_state_dict(model, state, folder.path / "transformer")
    state = {key: place(key, tensor, dtype, device) for key, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def transformer_state_dict(folder: ReleasedFolder) -> dict[str, Tensor]:
    """A released folder's transformer tensors under our names, memory-mapped."""
    return from_diffusers(read_tensors(weight_files(folder.path / "transformer")))


def place(key: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """One tensor in its run-time precision (float32 for the parts the reference keeps so)."""
    keep = any(part in key for part in FLOAT32_PARTS)
    return tensor.to(device=device, dtype=torch.float32 if keep else dtype)


def check_state_dict(
    model: torch.nn.Module, state: Mapping[str, Tensor], source: Path | str, kind: str = "Helios transformer"
) -> None:
    """Compares names and shapes with what the model needs; ``kind`` is what the message calls it.

    Raises:
        HeliosError: one sentence with the count and the first names of each kind of difference.
    """
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if not wanted.keys() & state.keys():
        raise HeliosError(f"{source} is not a {kind}: none of its {len(state)} tensors has a name that one has.")
    faults = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "misshaped": [
            f"{key} {list(state[key].shape)} instead of {list(shape)}"
            for key, shape in wanted.items()
            if key in state and tuple(state[key].shape) != shape
        ],
    }
    told = [f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names]
    if told:
        raise HeliosError(f"{source} does not fit a {kind}: {', '.join(told)} tensors; download it again.")


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
