"""Peak device and host memory of one chunk in each offload mode, at the released width.

    python -m benchmarks.offload [--blocks 40] [--size 640 384] [--modes none cpu disk] [--dtypes bf16 fp8]

Writes a transformer, a VAE and a text encoder of the released shapes to a temporary folder, then runs every mode in
a process of its own: one Distilled chunk of one step per stage, decoded, from prompt embeddings; and the text
encoder on its own. With a CUDA device: all 40 blocks of random bfloat16 weights at 640x384, and
benchmarks/results/<device>-<date>-offload.json. Without one: fewer blocks of zeros in sparse files at 64x64, device
memory "not measured". Host memory is VmHWM of /proc, so Linux only; it counts PyTorch itself, and pages of mapped
files, which the kernel takes back when it needs them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from helios_core.checkpoint.load import keeps_float32
from helios_core.checkpoint.source import CONFIG_KEY, VARIANT_KEY
from helios_core.checkpoint.text import load_text_encoder, umt5_shapes
from helios_core.commands.conversion_plan import Plan, Planned, plan_transformer
from helios_core.commands.convert import header_bytes
from helios_core.commands.tiny import write_tiny
from helios_core.networks.transformer import HeliosTransformer, TransformerConfig
from helios_core.networks.vae import VAEConfig, WanVAE
from helios_core.pipeline import HeliosPipeline

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MODES = ("none", "cpu", "disk")
SCALED_BLOCKS, SCALED_SIZE, SCALED_LAYERS = 4, (64, 64), 3
FULL_SIZE = (640, 384)
UMT5_XXL = {
    "model_type": "umt5", "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
WEIGHT_STD = 0.02
POOL = 1 << 24


# --- the files -----------------------------------------------------------------------------------------------


def write(plan: Plan, path: Path, is_random: bool) -> Path:
    """A complete file: zeros that take no space on disk, or random numbers, the same for every tensor."""
    start, offsets = header_bytes(plan)
    pools: dict[torch.dtype, Any] = {}
    with path.open("wb") as out:
        out.write(start)
        for item in plan.tensors if is_random else ():
            if item.dtype not in pools:
                pool = WEIGHT_STD * torch.randn(POOL, generator=torch.Generator().manual_seed(0))
                # e4m3 without its scale spans 448: the scales below bring it back.
                pool = pool * 4000 if item.dtype == torch.float8_e4m3fn else pool
                pools[item.dtype] = pool.to(item.dtype).view(torch.uint8).numpy().data
            out.seek(offsets[item.name])
            if item.name.endswith("_scale"):
                out.write(torch.tensor(1 / 4000).numpy().tobytes())
                continue
            for first in range(0, item.nbytes, len(pools[item.dtype])):
                out.write(pools[item.dtype][: item.nbytes - first])
        out.truncate(len(start) + sum(item.nbytes for item in plan.tensors))
    return path


def transformer_plan(blocks: int, dtype: str, folder: Path) -> Plan:
    """What ``helios_core convert`` would write for a transformer of this depth."""
    config = TransformerConfig(num_layers=blocks)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in HeliosTransformer(**config.to_dict()).state_dict().items()}
    metadata = {VARIANT_KEY: "distilled", CONFIG_KEY: json.dumps(config.to_dict())}
    types = {key: torch.float32 if keeps_float32(key) else torch.bfloat16 for key in shapes}
    source = write(Plan([Planned(key, types[key], shapes[key]) for key in shapes], metadata), folder / "shapes", False)
    return plan_transformer(source, dtype, None, min(3, blocks // 4))


def write_parts(folder: Path, layers: int, is_random: bool) -> None:
    """The VAE in float32, and a text encoder folder in bfloat16 with helios-tiny's tokenizer."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in WanVAE(VAEConfig()).state_dict().items()}
    write(Plan([Planned(k, torch.float32, s) for k, s in shapes.items()], {}), folder / "vae.safetensors", is_random)
    encoder = folder / "text"
    tiny = write_tiny(folder / "tiny")
    shutil.copytree(tiny / "tokenizer", encoder / "tokenizer")
    shutil.copy(tiny / "model_index.json", encoder)
    config = UMT5_XXL | {"num_layers": layers}
    (encoder / "text_encoder").mkdir()
    (encoder / "text_encoder" / "config.json").write_text(json.dumps(config))
    tensors = [Planned(key, torch.bfloat16, shape) for key, shape in umt5_shapes(config, "config").items()]
    write(Plan(tensors, {"format": "pt"}), encoder / "text_encoder" / "model.safetensors", is_random)


# --- one measurement, in a process of its own ----------------------------------------------------------------


def host_peak() -> int:
    """Highest resident memory of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def measured(result: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Adds the peaks of a stretch of work, and its seconds, to ``result``."""
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
    result["host_before"] = host_peak()
    started = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
        result["device_peak"] = torch.cuda.max_memory_allocated()
        result["device_reserved"] = torch.cuda.max_memory_reserved()
    result["seconds"] = time.perf_counter() - started
    result["host_peak"] = host_peak()


@torch.no_grad()
def measure(task: str, mode: str, file: Path, size: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """One chunk (``task`` chunk), or one prompt's encoding (``text``)."""
    offload = None if mode == "none" else mode
    result: dict[str, Any] = {"task": task, "mode": mode, "file": file.name}
    with measured(result, device):
        if task == "text":
            encoder = load_text_encoder(file, torch.bfloat16, device, streamed=offload is not None)
            # Ids beyond helios-tiny's vocabulary never occur.
            assert encoder.encode(["a red boat on a quiet lake"]).isfinite().all()
            return result
        vae = file.with_name("vae.safetensors")
        pipeline = HeliosPipeline.from_pretrained(file, torch.bfloat16, device, vae=vae, offload=offload)
        loaded = time.perf_counter()
        chunk = pipeline(
            prompt_embeds=torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(0)),
            width=size[0],
            height=size[1],
            num_frames=33,
            pyramid_num_inference_steps_list=[1, 1, 1],
            is_amplify_first_chunk=False,
            output_type="uint8",
        )
        assert chunk.latents.isfinite().all()
        result["chunk_seconds"] = time.perf_counter() - loaded
        # Float32 sums of bfloat16 results: equal in every mode if the latents are, bit for bit.
        result["latents"] = chunk.latents.double().abs().sum().item()
    return result


def in_own_process(*arguments: str) -> dict[str, Any]:
    """Runs ``--measure`` and returns what it printed."""
    command = [sys.executable, "-m", "benchmarks.offload", "--measure", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"task": arguments[0], "mode": arguments[1], "failed": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


# --- the table -----------------------------------------------------------------------------------------------


def gigabytes(count: int | None) -> str:
    return "not measured" if count is None else f"{count / 1e9:.2f} GB"


def row(name: str, size: int, result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"| {name} | {result['mode']} | {gigabytes(size)} | failed ({result['failed']}) | | |"
    seconds = result.get("chunk_seconds", result["seconds"])
    device, host = gigabytes(result.get("device_peak")), gigabytes(result["host_peak"])
    return f"| {name} | {result['mode']} | {gigabytes(size)} | {device} | {host} | {seconds:.1f} s |"


def run(options: argparse.Namespace, device: torch.device, folder: Path) -> list[dict[str, Any]]:
    is_full = device.type == "cuda"
    blocks = options.blocks or (TransformerConfig().num_layers if is_full else SCALED_BLOCKS)
    width, height = options.size or (FULL_SIZE if is_full else SCALED_SIZE)
    layers = UMT5_XXL["num_layers"] if is_full else SCALED_LAYERS
    print(f"{device_name(device)}: {blocks} blocks of width 5120, {width}x{height}, text encoder of {layers} blocks")
    print("| what | offload | file | peak device memory | peak host memory | time |\n|---|---|---|---|---|---|")
    write_parts(folder, int(layers), is_full)
    results = []
    for dtype in options.dtypes:
        file = write(transformer_plan(blocks, dtype, folder), folder / f"{dtype}.safetensors", is_full)
        for mode in options.modes:
            result = in_own_process("chunk", mode, str(file), str(width), str(height), device.type)
            results.append(result | {"blocks": blocks, "size": [width, height], "file_bytes": file.stat().st_size})
            print(row(f"one chunk, {dtype}", file.stat().st_size, result), flush=True)
        file.unlink()
    encoder = folder / "text"
    size = (encoder / "text_encoder" / "model.safetensors").stat().st_size
    for mode in [mode for mode in options.modes if mode != "cpu"]:
        result = in_own_process("text", mode, str(encoder), "0", "0", device.type)
        results.append(result | {"layers": layers, "file_bytes": size})
        print(row("text encoder, bf16", size, result), flush=True)
    return results


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def save(results: list[dict[str, Any]], device: torch.device) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = RESULTS / f"{name}-{dt.date.today()}-offload.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"device": device_name(device), "torch": torch.__version__, "rows": results}, indent=1))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, help="depth (default: 40 with CUDA, else 4)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp8"), default=("bf16", "fp8"))
    parser.add_argument("--folder", type=Path, help="where to write the temporary weights (28.7 GB with CUDA)")
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        task, mode, file, width, height, device = options.measure
        print(json.dumps(measure(task, mode, Path(file), (int(width), int(height)), torch.device(device))))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = run(options, device, Path(folder))
    if device.type == "cuda":
        print(save(results, device))


if __name__ == "__main__":
    main()
