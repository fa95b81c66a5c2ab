"""Seconds of our pipeline and of diffusers', side by side in one process over the same random weights.

    python -m benchmarks.speed [--part cpu|cuda|all] [--pairs 5] [--width 1536 --blocks 4] [--quick]

Every row alternates ours and diffusers', after a warm-up of both, and gives medians. On the CPU a scaled model in
float32 stands for the 14B one; with a CUDA device the full model runs in bfloat16 at 384x640, our VAE in bfloat16
and diffusers' in float32 as it is released. Without one the device part is reported as not measured. Writes
benchmarks/results/<device>-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .pairs import Pair, build_pair, narrow_in_place, other_variant

RESULTS = Path(__file__).parent / "results"
SCALED_SIZE = (320, 192)
FULL_SIZE = (640, 384)
SCALED_FFN = 4096  # the 14B model's proportion
SCALED_VAE = 32  # a third of the released VAE's width
STAGES = (4, 2, 1)


@dataclass
class Row:
    """One thing measured: medians in seconds, and their spread as (slowest - fastest) / median."""

    name: str
    ours: float
    theirs: float | None
    ours_spread: float
    theirs_spread: float | None
    floor: float | None = None
    peak_gib: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.ours / self.theirs


class Clock:
    """Times calls on one device, alternating between two contenders."""

    def __init__(self, device: torch.device, pairs: int):
        self._device, self._pairs = device, pairs

    def seconds(self, call: Callable[[], Any]) -> float:
        self._wait()
        begun = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - begun

    def row(self, name: str, ours: Callable[[], Any], theirs: Callable[[], Any] | None) -> Row:
        """Both contenders ``pairs`` times in turn, after one unmeasured call of each."""
        times: tuple[list[float], list[float]] = ([], [])
        contenders = [call for call in (ours, theirs) if call is not None]
        for call in contenders:
            call()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(self._pairs):
            for call, taken in zip(contenders, times, strict=False):
                taken.append(self.seconds(call))
        mine, reference = (spread(taken) if taken else (None, None) for taken in times)
        assert mine[0] is not None and mine[1] is not None
        row = Row(name, mine[0], reference[0], mine[1], reference[1], peak_gib=self._peak())
        print(line(row), flush=True)
        return row

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self._device.type == "cuda" else None


def spread(times: list[float]) -> tuple[float, float]:
    """Median, and the range over it."""
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


def line(row: Row) -> str:
    theirs = "-" if row.theirs is None else f"{row.theirs:.4g}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    share = "-" if row.floor is None else f"{row.floor / row.ours:.0%}"
    return f"| {row.name} | {row.ours:.4g} | {theirs} | {ratio} | {row.ours_spread:.0%} | {share} |"


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of this device's matrix product and attention at the sizes of stage 2, the best of a few runs."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    tokens, heads = (11040, 40) if device.type == "cuda" else (2760, 12)
    q, k, v = (torch.randn(1, heads, tokens, 128, device=device, dtype=dtype) for _ in range(3))
    clock = Clock(device, 1)

    def best(call: Callable[[], Any]) -> float:
        call()
        return min(clock.seconds(call) for _ in range(5))

    flops = 4 * heads * tokens**2 * 128
    backends = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION) if device.type == "cuda" else (None,)
    attention = {str(backend): flops / best(lambda: attend(q, k, v, backend)) for backend in backends}  # noqa: B023
    print("attention, TFLOP/s:", {name: round(value / 1e12, 3) for name, value in attention.items()}, flush=True)
    return {"matmul": 2 * size**3 / best(lambda: a @ b), "attention": max(attention.values())}


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: SDPBackend | None) -> torch.Tensor:
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def floor_seconds(call: Callable[[], Any], ceiling: dict[str, float]) -> float:
    """Time that the arithmetic of ``call`` takes at the measured ceilings, nothing else counted."""
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(flops for op, flops in counts.items() if "attention" in str(op))
    return attention / ceiling["attention"] + (sum(counts.values()) - attention) / ceiling["matmul"]


def network_rows(pair: Pair, size: tuple[int, int], clock: Clock, ceiling: dict[str, float]) -> Iterator[Row]:
    """One forward per stage, with what is prepared per prompt and chunk left out of ours, as in a chunk."""
    device, dtype = pair.ours.device, pair.ours.dtype
    width, height = (side // 8 for side in size)
    history = [torch.randn(1, 16, t, height, width, device=device, dtype=dtype) for t in (2, 2, 16)]
    text, context = pair.ours.transformer.prepare_text(pair.text), pair.ours.transformer.prepare_history(*history)
    positions = torch.arange(29, device=device)[None]
    given = {
        "encoder_hidden_states": pair.text,
        "indices_hidden_states": positions[:, 20:],
        "indices_latents_history_short": positions[:, [0, 19]],
        "indices_latents_history_mid": positions[:, 17:19],
        "indices_latents_history_long": positions[:, 1:17],
    } | dict(zip((f"latents_history_{name}" for name in ("short", "mid", "long")), history, strict=True))
    for stage, coarser in enumerate(STAGES):
        latents = torch.randn(1, 16, 9, height // coarser, width // coarser, device=device, dtype=dtype)
        timestep = torch.tensor([500], device=device)

        def ours(x=latents, t=timestep) -> Any:
            return pair.ours.transformer(x, t, text, history=context)

        def theirs(x=latents, t=timestep) -> Any:
            return pair.theirs.transformer(hidden_states=x, timestep=t, **given, return_dict=False)

        row = clock.row(f"forward, stage {stage}", ours, theirs)
        row.floor = floor_seconds(ours, ceiling)
        yield row


def vae_rows(pair: Pair, size: tuple[int, int], clock: Clock, ceiling: dict[str, float]) -> Iterator[Row]:
    width, height = size
    ours, theirs = pair.ours.vae, pair.theirs.vae
    latents = torch.randn(1, 16, 9, height // 8, width // 8, device=pair.ours.device)
    video = torch.rand(1, 3, 33, height, width, device=pair.ours.device) * 2 - 1
    row = clock.row("VAE decode, 33 frames", lambda: ours.decode(latents), lambda: theirs.decode(latents))
    row.floor = floor_seconds(lambda: ours.decode(latents), ceiling)
    yield row
    row = clock.row("VAE encode, 33 frames", lambda: ours.encode(video), lambda: theirs.encode(video))
    row.floor = floor_seconds(lambda: ours.encode(video), ceiling)
    yield row


def clip_rows(pair: Pair, size: tuple[int, int], clock: Clock, cases: list[tuple]) -> Iterator[Row]:
    """Whole clips: (label, chunks, steps, cfg, output type)."""
    for label, chunks, steps, cfg, output in cases:
        call = pair.call(*size, chunks, steps, cfg, output)
        extra = {"is_amplify_first_chunk": False} if pair.ours.variant == "distilled" else {}
        with undecoded(pair.theirs.vae) if output == "latent" else nullcontext():
            yield clock.row(label, lambda: pair.ours(**call, **extra), lambda: pair.theirs(**call, **extra))  # noqa: B023


@contextmanager
def undecoded(vae: Any) -> Iterator[None]:
    """Diffusers decodes every chunk even where latents are asked for, which would count against it."""
    decode = vae.decode
    vae.decode = lambda latents, return_dict: (torch.zeros(latents.shape[0], 3, 33, 8, 8, device=latents.device),)
    try:
        yield
    finally:
        vae.decode = decode


def own_rows(pair: Pair, size: tuple[int, int], clock: Clock) -> Iterator[Row]:
    """Ours under the options that diffusers has no counterpart of; each stays on for the next."""
    call = pair.call(*size, 3, [1, 1, 1], 1.0, "pt") | {"is_amplify_first_chunk": False}
    pair.ours.transformer.use_cuda_graphs()
    yield clock.row("clip of 3 chunks, [1, 1, 1], frames, CUDA graphs", lambda: pair.ours(**call), None)
    narrow_in_place(pair.ours.transformer)
    pair.ours.transformer.use_cuda_graphs()
    yield clock.row("the same, fp8 products", lambda: pair.ours(**call), None)
    pair.ours.transformer.compile_blocks()
    pair.ours.transformer.use_cuda_graphs()
    yield clock.row("the same, compiled", lambda: pair.ours(**call), None)


def text_row(device: torch.device, dtype: torch.dtype, clock: Clock) -> Row:
    """UMT5-XXL over one prompt; both pipelines run transformers' own, so there is nothing to compare."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=256384)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = UMT5EncoderModel(config).eval()
    finally:
        torch.set_default_dtype(previous)
    ids = torch.randint(0, 256384, (1, 512), device=device)
    return clock.row("text, one prompt", lambda: model(ids), None)


@torch.no_grad()
def measure(device: torch.device, pairs: int, quick: bool, config: dict[str, Any]) -> None:
    """All rows of one device; what was measured is saved whatever happens later."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    ceiling = ceilings(device, dtype)
    print("ceilings, TFLOP/s:", {name: round(value / 1e12, 3) for name, value in ceiling.items()}, flush=True)
    print("| what | ours, s | diffusers, s | ratio | spread | share of the floor |\n" + "|---" * 6 + "|", flush=True)
    measured: list[Row] = []
    try:
        for row in rows_of(device, dtype, pairs, quick, config, ceiling):
            measured.append(row)
    finally:
        result = {
            "device": device_name(device),
            "torch": torch.__version__,
            "size": list(FULL_SIZE if on_gpu else SCALED_SIZE),
            "dtype": str(dtype),
            "config": config,
            "ceilings": ceiling,
            "rows": [asdict(row) | {"ratio": row.ratio} for row in measured],
        }
        print("written to", save(result).name)


def rows_of(
    device: torch.device, dtype: torch.dtype, pairs: int, quick: bool, config: dict[str, Any], ceiling: dict[str, float]
) -> Iterator[Row]:
    on_gpu = device.type == "cuda"
    size = FULL_SIZE if on_gpu else SCALED_SIZE
    clock, few = Clock(device, pairs), Clock(device, min(3, pairs))
    if on_gpu:
        yield text_row(device, dtype, clock)
    pair = build_pair("distilled", device, dtype, dtype, **config)
    yield from network_rows(pair, size, clock, ceiling)
    yield from vae_rows(pair, size, few, ceiling)
    one = [(f"chunk, {steps}, latents", 1, steps, 1.0, "latent") for steps in ([1, 1, 1], [2, 2, 2])]
    yield from clip_rows(pair, size, clock, one)
    if not quick:
        clips = [(f"clip of 3 chunks, {steps}, frames", 3, steps, 1.0, "pt") for steps in ([1, 1, 1], [2, 2, 2])]
        yield from clip_rows(pair, size, few, clips)
        for variant, steps in (("mid", [2, 2, 2]), ("base", [5])):
            guided = [(f"chunk, {variant} {steps}, cfg 5, latents", 1, steps, 5.0, "latent")]
            yield from clip_rows(other_variant(pair, variant), size, few, guided)
    if on_gpu:
        yield from own_rows(pair, size, few)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def save(result: dict[str, Any]) -> Path:
    """One file per device and day."""
    name = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    path = RESULTS / f"{name}-{datetime.now():%Y-%m-%d}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cpu", "cuda", "all"], default="all")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each contender")
    parser.add_argument("--width", type=int, default=1536, help="of the CPU's model, a multiple of 128")
    parser.add_argument("--blocks", type=int, default=4, help="of the CPU's model")
    parser.add_argument("--quick", action="store_true", help="no whole clips, no Mid and Base")
    options = parser.parse_args()
    scaled = {"num_attention_heads": options.width // 128, "num_layers": options.blocks, "ffn_dim": SCALED_FFN}
    scaled["vae_width"] = SCALED_VAE
    if options.part != "cuda":
        print("\n## CPU\n")
        measure(torch.device("cpu"), options.pairs, options.quick, scaled)
    if options.part != "cpu":
        print("\n## CUDA device\n")
        if torch.cuda.is_available():
            measure(torch.device("cuda"), options.pairs, options.quick, {})
        else:
            print("not measured: this machine has no CUDA device")


if __name__ == "__main__":
    main()
