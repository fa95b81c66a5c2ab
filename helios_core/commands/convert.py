"""Writes a checkpoint as one safetensors file, tensor by tensor, in bf16, fp16, fp32 or scaled fp8.

The header is written first, from planned shapes; then every tensor is read, converted and written in slices,
so that memory does not grow with the model or with its largest tensor.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.folder import existing_file, read_entries, weight_files
from ..checkpoint.header import DTYPE_NAMES, TensorEntry, read_header
from ..checkpoint.load import check_state_dict, keeps_float32
from ..checkpoint.names import from_any_layout
from ..checkpoint.quantised import METADATA_KEY, quantisation_metadata, scales, without_companions
from ..checkpoint.source import CONFIG_KEY, INFO_TENSOR, SCHEDULER_KEY, VARIANT_KEY, open_transformer
from ..checkpoint.umt5 import SPIECE_TENSOR, TIED_EMBEDDING, umt5_config
from ..checkpoint.vae_names import native_vae
from ..errors import HeliosError
from ..networks.transformer import HeliosTransformer
from ..networks.transformer.fp8 import EXACT_BLOCKS, LARGEST, quantise
from ..variants import VARIANTS
from .tiny_shapes import text_encoder_shapes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
PARTS = ("transformer", "text_encoder", "vae")
# Numbers per slice: 32 MiB of float32.
SLICE = 8 << 20
_COMPARED = 1 << 16
_UMT5_LINEAR = tuple(f".{name}.weight" for name in ("q", "k", "v", "o", "wi_0", "wi_1", "wo"))


@dataclass(frozen=True)
class Planned:
    """One tensor of the new file, and where it comes from: a slice of ``file``, or ``content``.

    ``scale`` is what the source's own numbers are multiplied by. ``is_scaled`` tensors are written as e4m3 beside
    a ``_scale``.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path | None = None
    entry: TensorEntry | None = None
    scale: float = 1.0
    content: bytes = b""
    is_scaled: bool = False

    @property
    def nbytes(self) -> int:
        return len(self.content) or TensorEntry(self.dtype, self.shape, 0, 0).count * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """Everything the new file will hold."""

    tensors: list[Planned]
    metadata: dict[str, str]


def convert(
    source: str | Path,
    target: str | Path,
    dtype: str = "bf16",
    part: str = "transformer",
    variant: str | None = None,
    keep_blocks: int = EXACT_BLOCKS,
    show_progress: bool = True,
) -> Path:
    """Converts one part of a released folder, or a single transformer or VAE file, and checks the result.

    Args:
        dtype: bf16, fp16, fp32 or fp8 (per-tensor scaled e4m3 in ComfyUI's format; not for the VAE).
        part: transformer, text_encoder or vae.
        variant: base, mid or distilled, where a single transformer file does not say.
        keep_blocks: how many of the first and of the last blocks fp8 leaves in bf16.

    Raises:
        HeliosError: bad input, not enough space, or a result that differs from its source.
    """
    source, target = Path(source), Path(target)
    if dtype not in DTYPES or part not in PARTS:
        raise HeliosError(
            f"dtype={dtype!r}, part={part!r} is unknown; use one of {', '.join(DTYPES)} and one of {', '.join(PARTS)}."
        )
    if target.suffix != ".safetensors" or target.exists():
        why = "exists already" if target.exists() else "does not end in .safetensors"
        raise HeliosError(f"output {target} {why}; choose another file name.")
    plan = _PLANNERS[part](source, dtype, variant, keep_blocks)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_space(target, sum(item.nbytes for item in plan.tensors))
    unfinished = target.with_name(f".{target.name}.partial")
    try:
        with tqdm(
            total=2 * sum(item.nbytes for item in plan.tensors),
            unit="B",
            unit_scale=True,
            desc=f"{part} {dtype}",
            disable=not show_progress,
        ) as bar:
            write(plan, unfinished, bar)
        verify(plan, unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise HeliosError(
            f"{target} cannot be written ({error.strerror}); free space or choose another disk."
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return target


# --- what goes into the file ---------------------------------------------------------------------------------


def plan_transformer(path: Path, dtype: str, variant: str | None, keep_blocks: int) -> Plan:
    """Our names; the parts that the reference keeps float32 stay so."""
    source = open_transformer(path, variant)
    entries = read_entries(source.files)
    found = from_any_layout({key: value for key, value in entries.items() if not key.endswith(INFO_TENSOR)})
    with torch.device("meta"):
        model = HeliosTransformer(**source.config.to_dict())
    check_state_dict(model, {key: entry for key, (_, entry) in found.items()}, path)  # type: ignore[misc]
    factors = _scales(found, source.metadata, path)
    last = source.config.num_layers - keep_blocks

    def is_scaled(key: str) -> bool:
        parts = key.split(".")
        inside = parts[0] == "blocks" and keep_blocks <= int(parts[1]) < last
        return inside and key.endswith(".weight") and len(found[key][1].shape) == 2

    tensors = _planned(
        without_companions(found),
        lambda key: torch.float32 if keeps_float32(key) else DTYPES[dtype],
        is_scaled,
        factors,
    )
    metadata = {VARIANT_KEY: source.variant, CONFIG_KEY: json.dumps(source.config.to_dict()),
                SCHEDULER_KEY: json.dumps(source.scheduler)}  # fmt: skip
    return _finished(tensors, metadata, "transformer", dtype, path)


def plan_text_encoder(path: Path, dtype: str, _variant: str | None, _keep_blocks: int) -> Plan:
    """transformers' names, and the tokenizer as a tensor: what core's CLIPLoader type wan reads."""
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    spiece = existing_file(folder.parent / "tokenizer" / "spiece.model").read_bytes()
    found = read_entries(weight_files(folder, "model.safetensors"))
    found.pop(TIED_EMBEDDING, None)
    shapes = {key: entry.shape for key, (_, entry) in found.items()}
    wanted = text_encoder_shapes(umt5_config({**shapes, SPIECE_TENSOR: (len(spiece),)}, folder))
    wrong = sorted({key for key in wanted.keys() | shapes.keys() if wanted.get(key) != shapes.get(key)})
    if wrong:
        raise HeliosError(f"{folder} has {len(wrong)} missing, unexpected or misshaped tensors ({wrong[0]}, ...); "
                          "download it again.")  # fmt: skip
    tensors = _planned(found, lambda _: DTYPES[dtype], lambda key: key.endswith(_UMT5_LINEAR), {})
    tensors.append(Planned(SPIECE_TENSOR, torch.uint8, (len(spiece),), content=spiece))
    return _finished(tensors, {}, "text_encoder", dtype, path)


def plan_vae(path: Path, dtype: str, _variant: str | None, _keep_blocks: int) -> Plan:
    """Native Wan names, which core's VAELoader detects."""
    if dtype == "fp8":
        raise HeliosError("dtype='fp8' is not for the VAE, which is small and convolutional; use bf16 or fp32.")
    folder = path / "vae" if (path / "vae").is_dir() else path
    found = native_vae(read_entries([path] if path.is_file() else weight_files(folder)), path)
    return _finished(_planned(found, lambda _: DTYPES[dtype], lambda _: False, {}), {}, "vae", dtype, path)


_PLANNERS = {"transformer": plan_transformer, "text_encoder": plan_text_encoder, "vae": plan_vae}
Found = Mapping[str, tuple[Path, TensorEntry]]


def _scales(found: Found, metadata: Mapping[str, str], path: Path) -> dict[str, float]:
    companions = found.keys() - without_companions(found).keys()
    state: dict[str, Any] = {key: _read(*found[key]) if key in companions else found[key][1] for key in found}
    return {key: float(scale) for key, scale in scales(state, metadata, path).items()}


def _planned(found: Found, dtype_of: Any, is_scaled: Any, factors: Mapping[str, float]) -> list[Planned]:
    tensors = []
    for key, (file, entry) in found.items():
        item = Planned(key, dtype_of(key), entry.shape, file, entry, factors.get(key, 1.0))
        if item.dtype == torch.float8_e4m3fn:
            scaled = is_scaled(key)
            item = replace(item, is_scaled=scaled, dtype=item.dtype if scaled else torch.bfloat16)
        tensors.append(item)
    return tensors


def _finished(tensors: list[Planned], metadata: dict[str, str], part: str, dtype: str, path: Path) -> Plan:
    layers = [item.name.removesuffix(".weight") for item in tensors if item.is_scaled]
    tensors = tensors + [Planned(f"{layer}.weight_scale", torch.float32, ()) for layer in layers]
    metadata |= {"format": "pt", "helios.part": part, "helios.dtype": dtype, "helios.source": path.resolve().name,
                 "helios.converter": "helios_core convert 1"}  # fmt: skip
    if layers:
        metadata[METADATA_KEY] = quantisation_metadata(layers)
    # Widest type first, as the safetensors library does: every tensor is then aligned for its type.
    return Plan(sorted(tensors, key=lambda item: -item.dtype.itemsize), metadata)


# --- writing -------------------------------------------------------------------------------------------------


def header_bytes(plan: Plan) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and every tensor's offset in the file."""
    content: dict[str, Any] = {"__metadata__": plan.metadata}
    position, relative = 0, {}
    for item in plan.tensors:
        relative[item.name] = position
        content[item.name] = {
            "dtype": DTYPE_NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [position, position + item.nbytes],
        }
        position += item.nbytes
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    return start, {name: len(start) + offset for name, offset in relative.items()}


def write(plan: Plan, target: Path, bar: tqdm) -> None:
    """Header, then tensor by tensor."""
    start, offsets = header_bytes(plan)
    with target.open("wb") as out:
        out.write(start)
        for item in plan.tensors:
            if item.entry is None and not item.content:
                continue  # a scale: written with its weight
            scale = _scale_of(item) if item.is_scaled else 1.0
            if item.is_scaled:
                out.seek(offsets[f"{item.name}_scale"])
                out.write(torch.tensor(scale, dtype=torch.float32).numpy().tobytes())
            bar.update(item.nbytes)
            out.seek(offsets[item.name])
            for part in _converted(item, scale):
                out.write(part.view(torch.uint8).numpy().data)
            bar.update(item.nbytes)


def _converted(item: Planned, scale: float) -> Iterator[Tensor]:
    """The tensor's numbers in their new type, slice by slice."""
    if item.content:
        yield torch.frombuffer(bytearray(item.content), dtype=torch.uint8)
        return
    for part in _slices(item):
        result = quantise(part.float(), scale) if item.is_scaled else part.to(item.dtype)
        if not item.is_scaled and not result.isfinite().all():
            known = "the source is damaged" if not part.isfinite().all() else f"it does not fit {item.dtype}: use bf16"
            raise HeliosError(f"{item.name} of {item.file} holds infinite or undefined numbers; {known}.")
        yield result


def _scale_of(item: Planned) -> float:
    largest = 0.0
    for part in _slices(item):
        value = float(part.abs().amax()) if part.isfinite().all() else float("inf")
        largest = max(largest, value)
    if largest == float("inf"):
        raise HeliosError(f"{item.name} of {item.file} holds infinite or undefined numbers; the source is damaged.")
    return float(torch.tensor(largest / LARGEST, dtype=torch.float32)) if largest else 1.0


def _slices(item: Planned, largest: int = SLICE) -> Iterator[Tensor]:
    """The source's numbers, flat and as float32 where they were scaled."""
    assert item.file is not None and item.entry is not None
    size = item.entry.dtype.itemsize
    with item.file.open("rb") as file:
        file.seek(item.entry.start)
        left = item.entry.count
        while left:
            count = min(left, largest)
            buffer = bytearray(count * size)
            if file.readinto(buffer) != len(buffer):
                raise HeliosError(f"{item.file} ended while it was read; download it again.")
            part = torch.frombuffer(buffer, dtype=item.entry.dtype)
            yield part if item.scale == 1.0 else part.float() * item.scale
            left -= count


def _read(file: Path, entry: TensorEntry) -> Tensor:
    parts = list(_slices(Planned("", entry.dtype, entry.shape, file, entry)))
    return torch.cat(parts).reshape(entry.shape)


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise HeliosError(
            f"{target.parent} has {free / 1e9:.1f} GB free and the file needs {needed / 1e9:.1f} GB; free space or "
            "choose another disk."
        )


# --- checking ------------------------------------------------------------------------------------------------


def verify(plan: Plan, target: Path) -> None:
    """Compares the written file with its plan, and the beginning of every tensor with its source.

    Raises:
        HeliosError: any difference beyond the type's rounding.
    """
    written = read_header(target)
    wanted = {item.name: (item.dtype, item.shape) for item in plan.tensors}
    if {name: (entry.dtype, entry.shape) for name, entry in written.tensors.items()} != wanted:
        raise HeliosError(f"{target} does not hold what was planned; check the disk and convert again.")
    if written.metadata != plan.metadata:
        raise HeliosError(f"{target} has lost its metadata; check the disk and convert again.")
    for item in plan.tensors:
        if item.entry is not None and not _equals_source(item, written.tensors, target):
            raise HeliosError(f"{target} differs from its source at {item.name}; check the disk and convert again.")


def _equals_source(item: Planned, entries: Mapping[str, TensorEntry], target: Path) -> bool:
    copy = replace(item, file=target, entry=entries[item.name], scale=1.0)
    for ours, theirs in zip(_slices(copy, _COMPARED), _slices(item, _COMPARED), strict=False):
        if not item.is_scaled:
            return torch.equal(ours, theirs.to(item.dtype))
        scale = float(_read(target, entries[f"{item.name}_scale"]))
        error = (ours.float() * scale - theirs.float()).abs()
        # Half a step: three mantissa bits, or the smallest subnormal 2**-9.
        return bool((error <= theirs.float().abs() / 16 * 1.01 + scale * 2**-9).all())
    return True


# --- command line --------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Adds ``convert`` to the command line's subparsers."""
    command = commands.add_parser("convert", help="write one bf16 or fp8 file from a released folder")
    command.add_argument("source", type=Path, metavar="IN", help="released folder, or a single safetensors file")
    command.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")
    command.add_argument("--dtype", choices=DTYPES, default="bf16")
    command.add_argument("--part", choices=PARTS, default="transformer")
    command.add_argument("--variant", choices=VARIANTS, help="where a single file does not say which it is")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    result = convert(options.source, options.target, options.dtype, options.part, options.variant)
    print(f"{result}: {result.stat().st_size / 1e9:.2f} GB, checked")
