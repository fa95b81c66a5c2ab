"""A history as one safetensors file, so that a take continues tomorrow exactly where it stopped."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import HeliosError
from .history import CONTEXT_FRAMES, LATENT_CHANNELS, History
from .store import write_atomically

FORMAT, VERSION = "helios-history", 1
_OPTIONAL = ("anchor", "random_state")


def save_history(history: History, path: str | Path) -> None:
    """Writes ``history`` to ``path``, whole or not at all."""
    path = Path(path)
    tensors = {"latents": history.latents.contiguous()}
    tensors |= {name: value.contiguous() for name in _OPTIONAL if (value := getattr(history, name)) is not None}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "width": str(history.width),
        "height": str(history.height),
        "chunk": str(history.chunk),
        "seed": "" if history.seed is None else str(history.seed),
        "skip_first_chunk": str(history.skip_first_chunk),
    }
    try:
        write_atomically(path, save(tensors, metadata))
    except OSError as error:
        raise HeliosError(f"history file {path} cannot be written ({error.strerror}); choose another folder.") from None


def load_history(path: str | Path) -> History:
    """Reads what :func:`save_history` wrote.

    Raises:
        HeliosError: missing, damaged or foreign file, or one of a newer version.
    """
    try:
        with safe_open(path, framework="pt") as reader:
            metadata = reader.metadata() or {}
            tensors: dict[str, Tensor] = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise HeliosError(f"history file {path} does not exist; choose one that Helios Save History wrote.") from None
    except (SafetensorError, OSError) as error:
        raise HeliosError(f"history file {path} is damaged ({error}); save the history again.") from None
    latents = tensors.get("latents")
    complete = {"version", "chunk", "seed", "skip_first_chunk"} <= metadata.keys()
    fits = latents is not None and latents.shape[1:3] == (LATENT_CHANNELS, CONTEXT_FRAMES)
    if metadata.get("format") != FORMAT or not complete or latents is None or not fits:
        raise HeliosError(f"{path} is not a Helios history; choose a file that Helios Save History wrote.")
    if int(metadata["version"]) > VERSION:
        raise HeliosError(
            f"history file {path} has version {metadata['version']}, this Helios reads up to {VERSION}; update Helios."
        )
    return History(
        latents=tensors["latents"],
        anchor=tensors.get("anchor"),
        chunk=int(metadata["chunk"]),
        seed=int(metadata["seed"]) if metadata["seed"] else None,
        random_state=tensors.get("random_state"),
        skip_first_chunk=metadata["skip_first_chunk"] == "True",
    )
