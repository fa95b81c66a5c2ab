"""What a chunk depends on, as fingerprints that are equal in every run: model, patches, prompts, VAE."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import comfy.model_patcher

from ...helios_core.samplers import ChunkSampler
from ...helios_core.take.fingerprint import file_fingerprint, fingerprint, folder_fingerprint
from .model import HISTORY_KEY
from .schedule import SCHEDULE_KEY

# Everything nodes can attach to a MODEL that may change what it computes. Core's own ids (patches_uuid) are new in
# every run, so content is compared.
PATCHER_ATTRIBUTES = (
    "patches",
    "object_patches",
    "weight_wrapper_patches",
    "hook_patches",
    "injections",
    "wrappers",
    "callbacks",
)
# Values per tensor of a VAE: training changes every tensor nearly everywhere.
VAE_SAMPLE = 1024


def model_identity(patcher: Any) -> str:
    """A MODEL: the file its weights come from, the types it computes in, and every patch with its strength."""
    base_modules = {id(module) for module in (patcher.model, *patcher.model.modules())}

    def known(value: Any) -> str | None:
        if id(value) in base_modules:
            return "base model"
        return "patcher" if isinstance(value, comfy.model_patcher.ModelPatcher) else None

    patches = {name: getattr(patcher, name, None) for name in PATCHER_ATTRIBUTES}
    types = (patcher.model.get_dtype(), patcher.model.get_dtype_inference())
    return fingerprint(_weights(patcher), types, patches, patcher.model_options, known=known)


def _weights(patcher: Any) -> str:
    if patcher.cached_patcher_init is None:
        # Not from a Helios loader: nothing says where the weights come from, so nothing may be reused.
        return uuid.uuid4().hex
    path, *arguments = patcher.cached_patcher_init[1]
    path = Path(path)
    if path.is_dir():
        parts = [folder_fingerprint(path, ("model_index.json",))]
        parts += [folder_fingerprint(path / name) for name in ("transformer", "scheduler")]
        return fingerprint(parts, arguments)
    return fingerprint(file_fingerprint(path), arguments)


def conditioning_identity(conditioning: list) -> str:
    """A plain CONDITIONING, as in force at one chunk."""
    ignored = (HISTORY_KEY, SCHEDULE_KEY)
    rows = [(text, {k: v for k, v in options.items() if k not in ignored}) for text, options in conditioning]
    return fingerprint(rows, known=_patcher_only)


def sampler_identity(settings: ChunkSampler) -> str:
    """The settings of a Helios SAMPLER; what one run leaves on it does not count."""
    return fingerprint(type(settings).__qualname__, settings)


def vae_identity(vae: Any) -> str:
    """A VAE: the beginning of each of its tensors, the network and the type it computes in."""
    tensors = {
        name: (list(tensor.shape), tensor.dtype, tensor.detach().reshape(-1)[:VAE_SAMPLE])
        for name, tensor in vae.first_stage_model.state_dict().items()
    }
    return fingerprint(tensors, type(vae.first_stage_model).__qualname__, vae.vae_dtype)


def _patcher_only(value: Any) -> str | None:
    return "patcher" if isinstance(value, comfy.model_patcher.ModelPatcher) else None
