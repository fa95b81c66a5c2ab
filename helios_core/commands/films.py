"""A film from a pipeline to a file, for the commands that make films."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.streaming import OFFLOADS
from ..networks.transformer import ATTENTION_NAMES
from ..pipeline import HeliosPipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(model: Path, device: str | None = None, dtype: str | None = None, **options: Any) -> HeliosPipeline:
    """A pipeline on CUDA where there is one, in bfloat16 there and in float32 on a CPU, where nothing else is said.

    ``options`` and errors as for :meth:`HeliosPipeline.from_pretrained`.
    """
    device = device_or_default(device)
    return HeliosPipeline.from_pretrained(
        model, DTYPES[dtype or ("float32" if device == "cpu" else "bfloat16")], device, **options
    )


def device_or_default(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def add_loading(command: argparse.ArgumentParser) -> None:
    """Adds the options of :func:`loading`."""
    command.add_argument("--device", help="cuda, cpu, mps (default: cuda where there is one)")
    command.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, float32 on cpu")
    command.add_argument(
        "--offload", choices=OFFLOADS, help="small device memory: blocks come from the file, or from host memory"
    )
    command.add_argument("--attention", choices=ATTENTION_NAMES, default="auto", help="attention kernels")
    command.add_argument("--fp8-matmul", action="store_true", help="8-bit matrix products: smaller, not the same video")
    command.add_argument("--compile", action="store_true", help="torch.compile; the first chunk takes longer")
    command.add_argument("--cuda-graphs", action="store_true", help="record the network once and replay it")


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of :func:`load_pipeline` that the command line gives."""
    names = ("device", "dtype", "offload", "attention", "fp8_matmul", "compile", "cuda_graphs")
    return {name: getattr(options, name) for name in names}


def together(processes: int, cfg_parallel: bool, decode_parallel: bool = False) -> dict[str, Any]:
    """The keywords of :func:`load_pipeline` for ``processes`` that make a film together."""
    switches = {"cfg_parallel": cfg_parallel, "decode_parallel": decode_parallel}
    return {"context_parallel": max(1, (processes - decode_parallel) // (2 if cfg_parallel else 1)), **switches}


def sampling(steps: Sequence[int] | None) -> dict[str, Any]:
    """The pipeline's keywords of ``--steps``, which means one number for Base and one per stage for the others."""
    return {"num_inference_steps": steps[0], "pyramid_num_inference_steps_list": steps} if steps else {}
