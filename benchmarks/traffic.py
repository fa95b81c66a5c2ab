"""Bytes that eager operators read and write in one forward of the 14B model: ours against diffusers'.

    python -m benchmarks.traffic [--breakdown]

Nothing is computed: tensors are fake (shapes without data), bfloat16, at 384x640. Every operator counts what it
reads and writes once; views and shape operators count nothing, and attention counts as one operator (q, k, v, out)
in both models, as every backend fuses it. What is prepared once per prompt or chunk is not part of a forward.
The two tables are the operators of a CPU, and those of CUDA with comfy-kitchen's kernels; no GPU is needed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helios_core.networks.transformer import HeliosTransformer, kernels

from .pairs import in_dtype

HEIGHT, WIDTH = 384 // 8, 640 // 8
STAGES = {0: 4, 1: 2, 2: 1}  # stage: how much coarser than full resolution
TEXT_TOKENS = 512
WRITE_ONLY = {"copy_", "fill_", "zero_", "normal_", "uniform_"}
# Operators that return fresh memory without filling it, or a Python number.
SHAPE_ONLY = {"empty", "empty_like", "empty_strided", "new_empty", "_local_scalar_dense", "is_same_size"}


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes of every operator under it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.paused = False

    @property
    def total(self) -> int:
        return self.bytes.total()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        namespace, name = function._schema.name.split("::")
        if not self.paused and namespace != "prim" and not is_view(function) and name not in SHAPE_ONLY:
            self.bytes[name] += operator_bytes(function, name, args, kwargs or {}, result)
        return result

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


class FusedAttention(TorchFunctionMode):
    """Counts scaled dot product attention as the one kernel it is on a device, whatever a fake tensor runs."""

    def __init__(self, counter: TrafficCounter):
        super().__init__()
        self._counter = counter

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v = (args + tuple((kwargs or {}).get(name) for name in ("query", "key", "value")[len(args) :]))[:3]
        with self._counter.uncounted():
            out = torch.empty_like(q)
        self._counter.bytes["attention"] += sum(map(tensor_bytes, (q, k, v, out)))
        return out


def is_view(function: Any) -> bool:
    """True where the result shares its first input's memory and nothing is written."""
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def operator_bytes(function: Any, name: str, args: Any, kwargs: Any, result: Any) -> int:
    """What one call reads and writes; an input that is changed in place counts for both."""
    total = 0
    arguments = function._schema.arguments
    values = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    for argument in arguments:
        size = sum(map(tensor_bytes, tree_leaves(values.get(argument.name))))
        written = argument.alias_info is not None and argument.alias_info.is_write
        only_written = written and (argument.kwarg_only or name in WRITE_ONLY)
        total += size * (2 if written and not only_written else 1)
    fresh = [r.alias_info is None for r in function._schema.returns]
    outputs = (result,) if len(fresh) == 1 else result or ()
    for is_fresh, output in zip(fresh, outputs, strict=False):
        if is_fresh:
            total += sum(map(tensor_bytes, tree_leaves(output)))
    return total


def tensor_bytes(x: Any) -> int:
    """Bytes of a tensor's distinct elements: an expanded axis is read from the cache."""
    if not isinstance(x, Tensor):
        return 0
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else 1
    return count * x.element_size()


def ours(device: str, counter: TrafficCounter, **config: Any) -> dict[int, Counter[str]]:
    with counter.uncounted():
        model = in_dtype(HeliosTransformer(device=device, **config), torch.bfloat16)
        context = history_tensors(device)
        text = model.prepare_text(torch.empty(1, TEXT_TOKENS, 4096, device=device, dtype=torch.bfloat16))
        history = model.prepare_history(*context)
    return {
        stage: counted(counter, lambda: model(latents, timestep, text, history=history))  # noqa: B023
        for stage, latents, timestep in stages(device, counter)
    }


def theirs(device: str, counter: TrafficCounter, **config: Any) -> dict[int, Counter[str]]:
    from diffusers import HeliosTransformer3DModel

    with counter.uncounted(), torch.device(device):
        kept = HeliosTransformer3DModel._keep_in_fp32_modules
        model = HeliosTransformer3DModel(**config)
        in_dtype(model, torch.bfloat16, lambda name: any(part in name for part in kept))
        short, mid, long = history_tensors(device)
        text = torch.empty(1, TEXT_TOKENS, 4096, dtype=torch.bfloat16)
        positions = torch.arange(29)[None]
    inputs = {
        "encoder_hidden_states": text,
        "indices_hidden_states": positions[:, 20:],
        "indices_latents_history_short": positions[:, [0, 19]],
        "indices_latents_history_mid": positions[:, 17:19],
        "indices_latents_history_long": positions[:, 1:17],
        "latents_history_short": short,
        "latents_history_mid": mid,
        "latents_history_long": long,
        "return_dict": False,
    }
    return {
        stage: counted(counter, lambda: model(hidden_states=latents, timestep=timestep, **inputs))  # noqa: B023
        for stage, latents, timestep in stages(device, counter)
    }


def history_tensors(device: str) -> tuple[Tensor, ...]:
    """Short, mid and long history of one chunk."""
    return tuple(torch.empty(1, 16, t, HEIGHT, WIDTH, device=device, dtype=torch.bfloat16) for t in (2, 2, 16))


def stages(device: str, counter: TrafficCounter) -> Iterator[tuple[int, Tensor, Tensor]]:
    for stage, coarser in STAGES.items():
        with counter.uncounted():
            latents = torch.empty(1, 16, 9, HEIGHT // coarser, WIDTH // coarser, device=device, dtype=torch.bfloat16)
            timestep = torch.empty(1, device=device)
        yield stage, latents, timestep


def counted(counter: TrafficCounter, forward: Callable[[], Any]) -> Counter[str]:
    counter.bytes.clear()
    forward()
    return counter.bytes.copy()


def measure(device: str, **config: Any) -> dict[int, tuple[Counter[str], Counter[str]]]:
    """Per stage, the bytes by operator of our forward and of diffusers'; ``config`` changes the 14B model."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with assumed_kitchen(device), fake, torch.no_grad(), TrafficCounter() as counter, FusedAttention(counter):
        mine, reference = ours(device, counter, **config), theirs(device, counter, **config)
    return {stage: (mine[stage], reference[stage]) for stage in STAGES}


@contextmanager
def assumed_kitchen(device: str) -> Iterator[None]:
    """Lets the CUDA kernels of comfy-kitchen stand for themselves where no GPU would run them."""
    if device != "cuda":
        yield
        return
    import comfy_kitchen

    with mock.patch.object(kernels, "kitchen", lambda: comfy_kitchen):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breakdown", action="store_true", help="also list the operators that move most")
    options = parser.parse_args()
    for device in ("cpu", "cuda"):
        result = measure(device)
        print(f"\n{device} operators\n\n| stage | ours, GB | diffusers, GB | ratio |\n|---|---|---|---|")
        for stage, (mine, reference) in result.items():
            share = mine.total() / reference.total()
            print(f"| {stage} | {mine.total() / 1e9:.1f} | {reference.total() / 1e9:.1f} | {share:.3f} |")
        if options.breakdown:
            print_breakdown(result)


def print_breakdown(result: dict[int, tuple[Counter[str], Counter[str]]]) -> None:
    for stage, parts in result.items():
        for name, part in zip(("ours", "diffusers"), parts, strict=True):
            listed = ", ".join(f"{op} {size / 1e9:.1f}" for op, size in part.most_common(8))
            print(f"stage {stage}, {name}: {listed}")


if __name__ == "__main__":
    main()
