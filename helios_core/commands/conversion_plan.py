"""What a converted file will hold: every tensor's new name, type and shape, and where its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.folder import existing_file, read_entries, weight_files
from ..checkpoint.header import TensorEntry
from ..checkpoint.load import check_state_dict, keeps_float32, without_data
from ..checkpoint.packed import BLOCK, FORMS, Form
from ..checkpoint.quantised import (
    METADATA_KEY,
    SCALE,
    Decoder,
    Packed,
    decoders,
    quantisation_metadata,
    without_companions,
)
from ..checkpoint.source import CONFIG_KEY, SCHEDULER_KEY, VARIANT_KEY, open_transformer
from ..checkpoint.text import umt5_skeleton
from ..checkpoint.umt5 import EMBEDDING, MATRICES, SPIECE_TENSOR, TIED_EMBEDDING, umt5_config
from ..checkpoint.vae import vae_without_data
from ..checkpoint.vae_names import native_vae
from ..errors import HeliosError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
ARCHITECTURE = "general.architecture"  # every GGUF file has one
TYPES = (*DTYPES, *FORMS)
# Numbers per slice: 32 MiB of float32.
SLICE = 8 << 20


@dataclass(frozen=True)
class Planned:
    """One tensor of the new file, and where it comes from: a slice of ``file``, or ``content``.

    ``decode`` turns the source's quantised numbers into floats. ``is_scaled`` tensors are written as e4m3 beside a
    ``_scale``, those with a ``form`` packed.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path | None = None
    entry: TensorEntry | None = None
    decode: Decoder | None = None
    content: bytes = b""
    is_scaled: bool = False
    form: Form | None = None

    @property
    def nbytes(self) -> int:
        return len(self.content) or TensorEntry(self.dtype, self.shape, 0, 0, self.form).count * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """Everything the new file will hold."""

    tensors: list[Planned]
    metadata: dict[str, str]


def slices(item: Planned, largest: int = SLICE) -> Iterator[Tensor]:
    """The source's numbers, flat, at most ``largest`` of them, and as float32 where they were quantised."""
    assert item.file is not None and item.entry is not None
    size = item.entry.dtype.itemsize
    with item.file.open("rb") as file:
        file.seek(item.entry.start)
        left = item.entry.count
        largest = largest if item.decode is None else item.decode.stored(largest)
        while left:
            count = min(left, largest)
            buffer = bytearray(count * size)
            if file.readinto(buffer) != len(buffer):
                raise HeliosError(f"{item.file} ended while it was read; download it again.")
            part = torch.frombuffer(buffer, dtype=item.entry.dtype)
            yield part if item.decode is None else item.decode(part)
            left -= count


def read_tensor(file: Path, entry: TensorEntry) -> Tensor:
    """One tensor, copied from its file."""
    parts = list(slices(Planned("", entry.dtype, entry.shape, file, entry)))
    return torch.cat(parts).reshape(entry.shape)


def plan_transformer(path: Path, dtype: str, variant: str | None, keep_blocks: int) -> Plan:
    """Our names; the parts that the reference keeps float32 stay so."""
    source = open_transformer(path, variant)
    found = source.entries()
    model = without_data(source, torch.float32)
    state = _with_companions(found)
    check_state_dict(model, state, path, metadata=source.metadata)
    decode = decoders(state, source.metadata, path)
    found = {key: (file, _unpacked(entry, decode.get(key))) for key, (file, entry) in found.items()}
    entries = {key: entry for key, (_, entry) in without_companions(found).items()}
    decode |= {key: Packed(entry.form) for key, entry in entries.items() if entry.form is not None}
    form = FORMS.get(dtype)
    # Packed files are for small cards: GGUF's own converters leave no block out either.
    kept = 0 if form else keep_blocks
    last = source.config.num_layers - kept

    def is_narrow(key: str) -> bool:
        parts = key.split(".")
        inside = parts[0] == "blocks" and kept <= int(parts[1]) < last
        shape = entries[key].shape
        fits = len(shape) == 2 and (form is None or shape[1] % BLOCK == 0)
        return inside and key.endswith(".weight") and fits

    tensors = _planned(
        without_companions(found),
        lambda key: torch.float32 if keeps_float32(key) else DTYPES.get(dtype, torch.bfloat16),
        is_narrow,
        decode,
        form,
    )
    metadata = {VARIANT_KEY: source.variant, CONFIG_KEY: json.dumps(source.config.to_dict()),
                SCHEDULER_KEY: json.dumps(source.scheduler)}  # fmt: skip
    return _finished(tensors, metadata, "transformer", dtype, path)


def plan_text_encoder(path: Path, dtype: str, _variant: str | None, _keep_blocks: int) -> Plan:
    """transformers' names, and the tokenizer as a tensor: what core's CLIPLoader type wan reads."""
    _refuse(dtype, FORMS, "text encoder", "fp8 or bf16")
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    spiece = existing_file(folder.parent / "tokenizer" / "spiece.model").read_bytes()
    found = read_entries(weight_files(folder, "model.safetensors"))
    found.pop(TIED_EMBEDDING, None)
    state: dict[str, Any] = {key: entry for key, (_, entry) in found.items()}
    shapes = {key: entry.shape for key, entry in state.items()}
    model = umt5_skeleton(umt5_config({**shapes, SPIECE_TENSOR: (len(spiece),)}, folder), folder)
    state |= {TIED_EMBEDDING: state[EMBEDDING]} if EMBEDDING in state else {}
    check_state_dict(model, state, folder, "UMT5 text encoder")
    tensors = _planned(found, lambda _: DTYPES[dtype], lambda key: key.endswith(MATRICES), {})
    tensors.append(Planned(SPIECE_TENSOR, torch.uint8, (len(spiece),), content=spiece))
    return _finished(tensors, {}, "text_encoder", dtype, path)


def plan_vae(path: Path, dtype: str, _variant: str | None, _keep_blocks: int) -> Plan:
    """Native Wan names, which core's VAELoader detects."""
    _refuse(dtype, ("fp8", *FORMS), "VAE, which is small and convolutional", "bf16 or fp32")
    folder = path / "vae" if (path / "vae").is_dir() else path
    found = native_vae(read_entries([path] if path.is_file() else weight_files(folder)), path)
    vae_without_data(folder, {key: entry for key, (_, entry) in found.items()})
    return _finished(_planned(found, lambda _: DTYPES[dtype], lambda _: False, {}), {}, "vae", dtype, path)


PLANNERS = {"transformer": plan_transformer, "text_encoder": plan_text_encoder, "vae": plan_vae}
Found = Mapping[str, tuple[Path, TensorEntry]]


def _refuse(dtype: str, unfit: Iterable[str], what: str, remedy: str) -> None:
    if dtype in unfit:
        raise HeliosError(f"dtype={dtype!r} is not for the {what}; use {remedy}.")


def _with_companions(found: Found) -> dict[str, Any]:
    """The entry of every weight, and the scales and markers beside them as tensors."""
    weights = without_companions(found)
    return {key: entry if key in weights else read_tensor(file, entry) for key, (file, entry) in found.items()}


def _unpacked(entry: TensorEntry, decode: Decoder | None) -> TensorEntry:
    """As a GGUF file's header has it, where a marker beside the bytes tells how they are packed."""
    if not isinstance(decode, Packed) or entry.form is not None:
        return entry
    return replace(entry, shape=decode.form.shape(entry.shape), form=decode.form)


def _planned(
    found: Found,
    dtype_of: Callable[[str], torch.dtype],
    is_narrow: Callable[[str], bool],
    decode: Mapping[str, Decoder],
    form: Form | None = None,
) -> list[Planned]:
    tensors = []
    for key, (file, entry) in found.items():
        item = Planned(key, dtype_of(key), entry.shape, file, entry, decode.get(key))
        narrow = is_narrow(key)
        if item.dtype == torch.float8_e4m3fn:
            item = replace(item, is_scaled=narrow, dtype=item.dtype if narrow else torch.bfloat16)
        elif form is not None and narrow and not keeps_float32(key):
            item = replace(item, form=form, dtype=torch.uint8)
        tensors.append(item)
    return tensors


def _finished(tensors: list[Planned], metadata: dict[str, str], part: str, dtype: str, path: Path) -> Plan:
    layers = [item.name.removesuffix(".weight") for item in tensors if item.is_scaled]
    tensors = tensors + [Planned(f"{layer}{SCALE}", torch.float32, ()) for layer in layers]
    metadata |= {"format": "pt", "helios.part": part, "helios.dtype": dtype, "helios.source": path.resolve().name,
                 "helios.converter": "helios_core convert 1"}  # fmt: skip
    if layers:
        metadata[METADATA_KEY] = quantisation_metadata(layers)
    if dtype in FORMS:
        metadata[ARCHITECTURE] = "helios"
    # Widest type first, as the safetensors library does: every tensor is then aligned for its type.
    return Plan(sorted(tensors, key=lambda item: -item.dtype.itemsize), metadata)
