"""Takes under ComfyUI: where the store lies, and a chain whose chunks come from it where they can."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io

from ...helios_core.errors import HeliosError
from ...helios_core.take.history import History
from ...helios_core.take.seed_changes import SeedChanges, seed_at
from ...helios_core.take.store import DEFAULT_MAX_BYTES, FOLDER_NAME, ChunkStore, StoredChunk, chunk_key, start_key
from ...helios_core.take.take import Take, TakeChunk
from ..prompts import conditioning_at
from .identity import conditioning_identity, model_identity, sampler_identity

LIMIT_VARIABLE = "HELIOS_STORE_GIB"


def output_store() -> ChunkStore:
    """The store in ComfyUI's output folder, where takes lie and where the space is.

    The environment variable HELIOS_STORE_GIB replaces its size limit of 32 GiB.
    """
    limit = os.environ.get(LIMIT_VARIABLE)
    try:
        max_bytes = DEFAULT_MAX_BYTES if limit is None else int(float(limit) * 2**30)
    except (ValueError, OverflowError):
        raise HeliosError(f"{LIMIT_VARIABLE}={limit!r} is not a number; set it to gibibytes, like 32.") from None
    output = folder_paths.get_output_directory()
    folder = Path(output) / FOLDER_NAME
    if not folder_paths.is_within_directory(output, str(folder / "takes")):
        raise HeliosError(f"{folder} leads out of the output folder by a link; remove the link, or link all of output.")
    return ChunkStore(folder, max_bytes)


def take_input() -> io.String.Input:
    return io.String.Input(
        "take",
        default="",
        optional=True,
        advanced=True,
        tooltip="Name of the take in output/helios_store/takes, a readable list of its chunks. The chunks themselves "
        "are found by their content, under any name.",
    )


def seed_changes_input() -> io.String.Input:
    return io.String.Input(
        "seed_changes",
        default="",
        optional=True,
        advanced=True,
        tooltip="Rolls the film again from a chunk on: '7: 123, 9: 5' gives chunk 7 and what follows the seed 123, "
        "chunk 9 and what follows 5. Chunks before stay as they are. The film strip's button writes it.",
    )


class Chain:
    """The chunks of one node by key; sampled only where the store lacks them.

    ``run`` is the node's ChainRun.
    """

    def __init__(self, run: Any, history: History, seed: int, num_chunks: int, seed_changes: SeedChanges = ()):
        self.run, self.history, self.num_chunks = run, history, num_chunks
        self._seed, self._seed_changes = seed, seed_changes
        self.key = start_key(history)
        self._fixed = {
            "model": model_identity(run.model),
            "sampler": sampler_identity(run.sampler),
            "cfg": run.guider.cfg,
        }
        self.first_key = self._key_after(self.key, history)

    def _key_after(self, previous: str, history: History) -> str:
        prompts = {"positive": self.run.positive}
        if self.run.guider.cfg > 1:
            prompts["negative"] = self.run.negative
        in_force = {
            name: conditioning_identity(conditioning_at(prompt, history.chunk)) for name, prompt in prompts.items()
        }
        return chunk_key(previous, **self._fixed, seed=self._seed_at(history), **in_force)

    def _seed_at(self, history: History) -> int:
        return seed_at(self._seed_changes, history.chunk, self._seed)

    def chunks(self, take: Take) -> Iterator[TakeChunk]:
        """Yields every chunk as soon as it is on disk; :attr:`history` is then the history after it."""
        for _ in range(self.num_chunks):
            comfy.model_management.throw_exception_if_processing_interrupted()
            previous, self.key = self.key, self._key_after(self.key, self.history)
            found = take.chunk(self.history.chunk, self.key, previous, self._sample)
            self.history = found.chunk.history
            yield found

    def _sample(self) -> StoredChunk:
        samples, history = self.run.sample(self.history, self._seed_at(self.history))
        return StoredChunk(samples, history)


def manifest_settings(
    history: History,
    seed: int,
    num_chunks: int,
    prompt: Mapping[str, Any] | None,
    seed_changes: SeedChanges = (),
) -> dict[str, Any]:
    """What a manifest says about a take; texts only where metadata may be written."""
    settings: dict[str, Any] = {
        "width": history.width,
        "height": history.height,
        "seed": seed,
        "num_chunks": num_chunks,
    }
    if seed_changes:
        settings["seed_changes"] = dict(seed_changes)
    if prompt and not args.disable_metadata:
        texts = {key: node["inputs"].get("text") for key, node in prompt.items() if "inputs" in node}
        settings["prompts"] = {key: text for key, text in texts.items() if isinstance(text, str)}
    return settings
