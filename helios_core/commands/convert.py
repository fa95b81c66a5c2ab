"""Writes a checkpoint as one file, tensor by tensor: safetensors in bf16, fp16, fp32 or scaled fp8, or packed GGUF.

The header is written first, from planned shapes; then every tensor is read, converted and written in slices,
so that memory does not grow with the model or with its largest tensor.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.gguf import any_header
from ..checkpoint.header import DTYPE_NAMES, TensorEntry
from ..checkpoint.packed import BLOCK, FORMS, pack
from ..checkpoint.quantised import Packed
from ..errors import HeliosError, shortened
from ..networks.transformer.fp8 import EXACT_BLOCKS, LARGEST, quantise
from ..variants import VARIANTS
from .conversion_plan import ARCHITECTURE, PLANNERS, TYPES, Plan, Planned, read_tensor, slices
from .gguf_header import gguf_header

_COMPARED = 1 << 16
_LARGEST_SCALE = 65504.0  # of float16, which the scales of packed numbers are


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
        dtype: bf16, fp16, fp32, fp8 (per-tensor scaled e4m3 in ComfyUI's format; not for the VAE), or one of
            GGUF's q8_0, q5_1, q5_0, q4_1, q4_0 (for the transformer; all else than its blocks' matrices is bf16).
        part: transformer, text_encoder or vae.
        variant: base, mid or distilled, where a single transformer file does not say.
        keep_blocks: how many of the first and of the last blocks fp8 leaves in bf16.

    Raises:
        HeliosError: bad input, not enough space, or a result that differs from its source.
    """
    source, target = Path(source), Path(target)
    if dtype not in TYPES or part not in PLANNERS:
        raise HeliosError(
            f"dtype={shortened(dtype)}, part={shortened(part)} is unknown; use one of {', '.join(TYPES)} and one of "
            f"{', '.join(PLANNERS)}."
        )
    suffix = ".gguf" if dtype in FORMS else ".safetensors"
    if target.suffix != suffix or target.exists():
        why = "exists already" if target.exists() else f"does not end in {suffix}, which dtype={dtype!r} is written as"
        raise HeliosError(f"output {target} {why}; choose another file name.")
    plan = PLANNERS[part](source, dtype, variant, keep_blocks)
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
    start, offsets = (gguf_header if ARCHITECTURE in plan.metadata else header_bytes)(plan)
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
    for part in slices(item):
        if item.form is not None and part.abs().amax() <= _LARGEST_SCALE:
            yield pack(item.form, part)
            continue
        result = quantise(part.float(), scale) if item.is_scaled else part.to(item.dtype)
        if item.form is not None or not (item.is_scaled or result.isfinite().all()):
            known = "the source is damaged" if not part.isfinite().all() else f"it does not fit {item.dtype}: use bf16"
            raise HeliosError(f"{item.name} of {item.file} holds infinite or undefined numbers; {known}.")
        yield result


def _scale_of(item: Planned) -> float:
    largest = 0.0
    for part in slices(item):
        value = float(part.abs().amax()) if part.isfinite().all() else float("inf")
        largest = max(largest, value)
    if largest == float("inf"):
        raise HeliosError(f"{item.name} of {item.file} holds infinite or undefined numbers; the source is damaged.")
    return float(torch.tensor(largest / LARGEST, dtype=torch.float32)) if largest else 1.0


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
    written = any_header(target)
    wanted = {item.name: (item.dtype, item.shape, item.form) for item in plan.tensors}
    if {name: (entry.dtype, entry.shape, entry.form) for name, entry in written.tensors.items()} != wanted:
        raise HeliosError(f"{target} does not hold what was planned; check the disk and convert again.")
    if written.metadata != plan.metadata:
        raise HeliosError(f"{target} has lost its metadata; check the disk and convert again.")
    for item in plan.tensors:
        if item.entry is not None and not _equals_source(item, written.tensors, target):
            raise HeliosError(f"{target} differs from its source at {item.name}; check the disk and convert again.")


def _equals_source(item: Planned, entries: Mapping[str, TensorEntry], target: Path) -> bool:
    decode = None if item.form is None else Packed(item.form)
    copy = replace(item, file=target, entry=entries[item.name], decode=decode)
    for ours, theirs in zip(slices(copy, _COMPARED), slices(item, _COMPARED), strict=False):
        if item.form is not None:
            error, largest = ((ours - theirs.float()).abs().view(-1, BLOCK), theirs.float().abs().view(-1, BLOCK))
            # A step, and the rounding of the scales.
            return bool((error <= largest.amax(1, keepdim=True) * (2.02 / 2**item.form.bits + 2**-10)).all())
        if not item.is_scaled:
            return torch.equal(ours, theirs.to(item.dtype))
        scale = float(read_tensor(target, entries[f"{item.name}_scale"]))
        error = (ours.float() * scale - theirs.float()).abs()
        # Half a step: three mantissa bits, or the smallest subnormal 2**-9.
        return bool((error <= theirs.float().abs() / 16 * 1.01 + scale * 2**-9).all())
    return True


# --- command line --------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Adds ``convert`` to the command line's subparsers."""
    command = commands.add_parser("convert", help="write one bf16, fp8 or GGUF file from a released folder")
    command.add_argument("source", type=Path, metavar="IN", help="released folder, or a single file")
    command.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write; .gguf for q8_0 ...")
    command.add_argument("--dtype", choices=TYPES, default="bf16")
    command.add_argument("--part", choices=PLANNERS, default="transformer")
    command.add_argument("--variant", choices=VARIANTS, help="where a single file does not say which it is")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    result = convert(options.source, options.target, options.dtype, options.part, options.variant)
    print(f"{result}: {result.stat().st_size / 1e9:.2f} GB, checked")
