"""What several processes that compute one film send each other, and what that costs.

    python -m benchmarks.scaling

Bytes are counted from the calls of the real 14B network on fake tensors (shapes without data, bfloat16, 384x640), and
compared with the formula of :func:`forward_bytes`. Times are computed from them; nothing is run on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from helios_core.networks.transformer import HeliosTransformer, TransformerConfig
from helios_core.networks.transformer.ulysses import Ulysses
from helios_core.variants import CHUNK_FRAMES

HEIGHT, WIDTH = 384 // 8, 640 // 8
STAGES = {0: 4, 1: 2, 2: 1}  # stage: how much coarser than full resolution
TEXT_TOKENS = 512
# Of one forward in each stage, and of a chunk's decode: counted on meta tensors, in 1e12 operations.
FORWARD_TFLOP, DECODE_TFLOP = {0: 69.7, 1: 119.1, 2: 359.6}, 69.3
# Helios-Distilled with one step in each stage (arXiv 2603.04379): frames a second on one H100.
PUBLISHED_FPS = 19.53
PROCESSES = (2, 4, 8)


@dataclass(frozen=True)
class Link:
    """Between two GPUs: bytes a second in one direction, and seconds that a call takes at least."""

    name: str
    bandwidth: float
    latency: float


LINKS = (Link("NVLink", 360e9, 15e-6), Link("100 Gb/s Ethernet", 11.25e9, 50e-6))


@dataclass(frozen=True)
class Work:
    """A variant's chunk: forwards of each stage."""

    name: str
    forwards: tuple[int, int, int]
    guided: bool = False

    def tflop(self) -> float:
        """Of its forwards."""
        return sum(count * FORWARD_TFLOP[stage] for stage, count in enumerate(self.forwards))


WORKS = (
    Work("Distilled, 1 1 1", (1, 1, 1)),
    Work("Distilled, 2 2 2", (2, 2, 2)),
    Work("Mid, 20 20 20, guided", (2 * 18, 40, 40), True),  # two of its steps are zero
    Work("Base, 50, guided", (0, 0, 100), True),
)


# --- bytes -------------------------------------------------------------------------------------------------------


def part(count: int, processes: int, place: int) -> int:
    """Of ``count`` things in ``processes`` parts, larger ones first."""
    each, more = divmod(count, processes)
    return each + (place < more)


def forward_bytes(
    config: TransformerConfig, history: int, noisy: int, processes: int, place: int, batch: int = 1, itemsize: int = 2
) -> int:
    """What process ``place`` sends to the others in one forward.

    With s of L tokens, n of them noisy, and c of C channels in its heads: in each block q, k and v of its tokens to the
    others' heads, 3s(C - c), and its heads' result for the others' tokens, (L - s)c; in the last block q and the
    result are of noisy tokens alone; at the end its velocity to all.
    """
    own_noisy = part(noisy, processes, processes - 1 - place)
    own = part(history, processes, place) + own_noisy
    channels = part(config.num_attention_heads, processes, place) * config.attention_head_dim
    away, total = config.dim - channels, history + noisy
    block = 3 * own * away + (total - own) * channels
    last = (2 * own + own_noisy) * away + (noisy - own_noisy) * channels
    velocity = (processes - 1) * own_noisy * config.out_channels * math.prod(config.patch_size)
    return batch * itemsize * ((config.num_layers - 1) * block + last + velocity)


def tokens(height: int, width: int, coarser: int) -> tuple[int, int]:
    """History and noisy tokens of a chunk of latents that are ``height`` x ``width`` at full resolution."""
    rows, columns = height // 2, width // 2
    history = 2 * rows * columns + math.ceil(rows / 2) * math.ceil(columns / 2)
    history += 4 * math.ceil(rows / 4) * math.ceil(columns / 4)
    return history, 9 * (rows // coarser) * (columns // coarser)


@contextmanager
def counted(sent: list[int], place: Callable[[], int]) -> Iterator[None]:
    """Adds up the bytes of every exchange that go to other processes; nothing is sent."""

    def exchange(received: Tensor, tensor: Tensor, _: Any, outgoing: list[int], group: Any = None) -> None:
        sent.append((sum(outgoing) - outgoing[place()]) * tensor.element_size())

    with mock.patch("torch.distributed.all_to_all_single", exchange):
        yield


def counted_bytes(processes: int) -> dict[int, dict[int, int]]:
    """Of one forward of the 14B network, by stage: what the first and the last process send, by their calls."""
    found: dict[int, dict[int, int]] = {}
    calls: list[int] = []
    with FakeTensorMode(), torch.no_grad():
        network = HeliosTransformer(dtype=torch.bfloat16)
        text = network.prepare_text(torch.empty(1, TEXT_TOKENS, network.config.text_dim, dtype=torch.bfloat16))
        history = network.prepare_history(
            *(torch.empty(1, 16, frames, HEIGHT, WIDTH, dtype=torch.bfloat16) for frames in (2, 2, 16))
        )
        for stage, coarser in STAGES.items():
            latents = torch.empty(1, 16, 9, HEIGHT // coarser, WIDTH // coarser, dtype=torch.bfloat16)
            for place in (0, processes - 1):
                network.ulysses = Ulysses(place, processes)
                calls.clear()
                with counted(calls, lambda place=place: place):
                    network(latents, torch.zeros(1), text, history=history)
                found.setdefault(stage, {})[place] = sum(calls)
    return found


def exchanges(config: TransformerConfig) -> int:
    """Calls in one forward: two a block, three in the last, one for the velocity."""
    return 2 * config.num_layers + 2


# --- time --------------------------------------------------------------------------------------------------------


def tflop_per_second() -> float:
    """What the published speed comes to, decode included."""
    return (WORKS[0].tflop() + DECODE_TFLOP) * PUBLISHED_FPS / CHUNK_FRAMES


def chunk_seconds(
    work: Work, processes: int, link: Link | None = None, halves: int = 1, decode_parallel: bool = False
) -> float:
    """A chunk on one GPU, or on several: their forwards, what they send, and the decode, which one does alone.

    With two ``halves`` each has every other forward. With ``decode_parallel`` one GPU decodes while the others sample.
    """
    rate = tflop_per_second()
    sampling, decode = processes - decode_parallel, DECODE_TFLOP / rate
    seconds = work.tflop() / rate / sampling + sent_seconds(work, sampling, link, halves)
    return max(seconds, decode) if decode_parallel else seconds + decode


def sent_seconds(work: Work, processes: int, link: Link | None, halves: int) -> float:
    """What a chunk's exchanges between ``processes`` that sample take; none without a ``link``."""
    config, context, seconds = TransformerConfig(), processes // halves, 0.0
    if link is None or processes == 1:
        return seconds
    for stage, forwards in enumerate(work.forwards):
        history, noisy = tokens(HEIGHT, WIDTH, STAGES[stage])
        count, bytes_sent, calls = forwards / halves, 0, halves - 1
        if halves > 1:
            bytes_sent += 2 * 4 * noisy * config.out_channels
        if context > 1:
            bytes_sent += max(forward_bytes(config, history, noisy, context, place) for place in range(context))
            calls += exchanges(config)
        seconds += count * (bytes_sent / link.bandwidth + calls * link.latency)
    return seconds


def sooner_together(speedup: float, gpus: int) -> int:
    """Up to so many films, queued at once, are all done sooner if all GPUs make one after another."""
    films = 0
    while (films + 1) / speedup < math.ceil((films + 1) / gpus) and films < gpus:
        films += 1
    return films


def print_bytes() -> None:
    config = TransformerConfig()
    print("| GPUs | stage | tokens | one GPU sends in a forward, counted | by the formula |")
    print("|---|---|---|---|---|")
    for processes in PROCESSES:
        for stage, sent in counted_bytes(processes).items():
            history, noisy = tokens(HEIGHT, WIDTH, STAGES[stage])
            formula = {place: forward_bytes(config, history, noisy, processes, place) for place in sent}
            equal = "the same" if formula == sent else f"{max(formula.values()):,}"
            print(f"| {processes} | {stage} | {history} + {noisy} | {max(sent.values()) / 1e6:,.1f} MB | {equal} |")


def print_times() -> None:
    print(
        f"Computed, at {tflop_per_second():.0f} TFLOP/s a GPU: what the published {PUBLISHED_FPS} frames a second are."
    )
    print()
    print(f"| chunk | GPUs | {' | '.join(f'{link.name}, s (times as fast; films)' for link in LINKS)} |")
    print("|---|---|---|---|")
    for work in WORKS:
        alone = chunk_seconds(work, 1)
        print(f"| {work.name} | 1 | {alone:.2f} | |")
        for processes in PROCESSES:
            for name, halves, decode_parallel in ways(work, processes):
                cells = []
                for link in LINKS:
                    seconds = chunk_seconds(work, processes, link, halves, decode_parallel)
                    times = alone / seconds
                    cells.append(f"{seconds:.2f} ({times:.2f}; {sooner_together(times, processes)})")
                print(f"| {work.name} | {name} | {' | '.join(cells)} |")


def ways(work: Work, processes: int) -> list[tuple[str, int, bool]]:
    """How ``processes`` may divide a film: a name, halves, and whether one of them decodes."""
    if work.guided:
        return [(f"{processes}", 1, False), (f"2 x {processes // 2}", 2, False)]
    return [(f"{processes}", 1, False), (f"{processes - 1} + 1 that decodes", 1, True)]


def main() -> None:
    print_bytes()
    print()
    print_times()


if __name__ == "__main__":
    main()
