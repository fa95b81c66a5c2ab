"""A history as one safetensors file, so that a take continues tomorrow exactly where it stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..checkpoint.folder import existing_file
from ..checkpoint.mapped import map_file
from ..errors import HeliosError, shortened
from ..networks.settings import parse_object
from .anti_drift import PART
from .fingerprint import fingerprint
from .history import History
from .store import write_atomically

# Version 2 holds an anti-drift state too; without one a file stays readable for earlier releases.
FORMAT, PLAIN_VERSION, VERSION = "helios-history", 1, 2
POLICY = "anti_drift"
_STATED = {"version", "chunk", "seed", "skip_first_chunk"}


def save_history(history: History, path: str | Path) -> None:
    """Writes ``history`` to ``path``, whole or not at all."""
    path = Path(path)
    tensors, plain = history.parts()
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    policy = {name: value for name, value in plain.items() if name.startswith(PART)}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION if policy else PLAIN_VERSION),
        "width": str(history.width),
        "height": str(history.height),
        "chunk": str(history.chunk),
        "seed": "" if history.seed is None else str(history.seed),
        "skip_first_chunk": str(history.skip_first_chunk),
    }
    if policy:
        metadata[POLICY] = json.dumps(policy)
    metadata["checksum"] = _checksum(tensors, metadata)
    try:
        write_atomically(path, save(tensors, metadata))
    except OSError as error:
        raise HeliosError(f"history file {path} cannot be written ({error.strerror}); choose another folder.") from None


def load_history(path: str | Path) -> History:
    """Reads what :func:`save_history` wrote.

    Raises:
        HeliosError: missing, damaged or foreign file, or one of a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise HeliosError(f"history file {path} does not exist; choose one that Helios Save History wrote.")
    try:
        mapped, metadata = map_file(existing_file(path))
    except HeliosError:
        raise HeliosError(
            f"history file {path} is damaged, it is no whole safetensors file; save the history again."
        ) from None
    # Copies: the file may be saved anew while the history is in use.
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    if metadata.get("format") != FORMAT or "latents" not in tensors or not metadata.keys() >= _STATED:
        raise HeliosError(f"{path} is not a Helios history; choose a file that Helios Save History wrote.")
    version = _whole_number(metadata["version"], "version", path)
    if version > VERSION:
        raise HeliosError(
            f"history file {path} has version {version}, this Helios reads up to {VERSION}; update Helios."
        )
    # Older files have none.
    if "checksum" in metadata and metadata["checksum"] != _checksum(tensors, metadata):
        raise HeliosError(f"history file {path} is damaged, its checksum differs; save the history again.")
    if metadata["skip_first_chunk"] not in ("True", "False"):
        raise _no_value(path, "skip_first_chunk", metadata["skip_first_chunk"])
    plain = {
        "chunk": _whole_number(metadata["chunk"], "chunk", path),
        "seed": _whole_number(metadata["seed"], "seed", path) if metadata["seed"] else None,
        "skip_first_chunk": metadata["skip_first_chunk"] == "True",
    }
    if POLICY in metadata:
        plain |= parse_object(metadata[POLICY], f"history file {path}", "save the history again")
    return History.from_parts({**tensors, **plain}, f"history file {path}")


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    stated = {name: value for name, value in metadata.items() if name != "checksum"}
    return fingerprint(stated, dict(tensors))


def _whole_number(text: str, name: str, path: Path) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise _no_value(path, name, text)
    return int(text)


def _no_value(path: Path, name: str, text: str) -> HeliosError:
    return HeliosError(f"history file {path} has {name}={shortened(text)}; save the history again.")
