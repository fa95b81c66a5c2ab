"""CUDA graphs of the forward: one launch instead of one per operator, for each of a chain's few latent sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .prepared import PreparedHistory, PreparedText

WARM_UP_RUNS = 2
Forward = Callable[[Tensor, Tensor, PreparedText, "PreparedHistory | None"], Tensor]
Capture = Callable[[Callable[[], Tensor], Any], tuple[Callable[[], Any], Tensor]]
"""(forward over fixed memory, memory pool) -> what runs it again, and the tensor its result then lies in."""


class GraphedForward:
    """A forward with everything prepared, recorded once per latent size and replayed over fixed memory.

    Prompt and history are copied into that memory when another one comes: with guidance, where two prompts alternate,
    at every call.

    Args:
        forward: (latents, timestep, text, history) -> velocity.
        held: what the forward reads besides its arguments and the weights, kept alive for the graphs.
        capture: how to record; CUDA graphs unless a test says otherwise.
    """

    def __init__(self, forward: Forward, held: Callable[[], list[Tensor]], capture: Capture | None = None):
        self._forward, self._held, self._capture = forward, held, capture or capture_cuda_graph
        self._pool: Any = None
        self._sources: tuple[PreparedText | None, PreparedHistory | None] = (None, None)
        self._text: PreparedText | None = None
        self._history: PreparedHistory | None = None
        self._graphs: dict[tuple, _Graph] = {}

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: PreparedText, history: PreparedHistory | None
    ) -> Tensor:
        """As the forward; the result is a tensor of its own."""
        self._take(text, history)
        key = (latents.shape, latents.dtype, timestep.dtype, history is None)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(latents, timestep, history is not None)
        return self._graphs[key](latents, timestep)

    def _take(self, text: PreparedText, history: PreparedHistory | None) -> None:
        """Brings prompt and history to where the graphs read them; other shapes need other memory and new graphs."""
        known_text, known_history = self._sources
        if text is not known_text and not _copied(_text_tensors(self._text), _text_tensors(text)):
            self._text = PreparedText(tuple((k.clone(), v.clone()) for k, v in text.keys_values))
            self._forget()
        if history is None:
            history = known_history
        elif history is not known_history and not _copied(_history_tensors(self._history), _history_tensors(history)):
            self._history = PreparedHistory(history.tokens.clone(), history.rope.clone())
            self._forget()
        self._sources = (text, history)

    def _forget(self) -> None:
        """Drops the graphs, and with them their memory pool: one that no graph uses may not be used again."""
        self._graphs.clear()
        self._pool = None

    def _recorded(self, latents: Tensor, timestep: Tensor, with_history: bool) -> _Graph:
        if self._pool is None and latents.is_cuda:
            # One for all sizes: they never run at the same time, and results are copied out.
            self._pool = torch.cuda.graph_pool_handle()
        inputs = (latents.clone(), timestep.clone())
        text, history = self._text, self._history if with_history else None
        assert text is not None
        replay, out = self._capture(lambda: self._forward(*inputs, text, history), self._pool)
        return _Graph(inputs, replay, out, self._held())


class _Graph:
    """One recorded forward with its fixed inputs and output."""

    def __init__(self, inputs: tuple[Tensor, Tensor], replay: Callable[[], Any], out: Tensor, held: list[Tensor]):
        self._inputs, self._replay, self._out, self._held = inputs, replay, out, held

    def __call__(self, *inputs: Tensor) -> Tensor:
        for fixed, given in zip(self._inputs, inputs, strict=True):
            fixed.copy_(given)
        self._replay()
        return self._out.clone()


def capture_cuda_graph(run: Callable[[], Tensor], pool: Any) -> tuple[Callable[[], Any], Tensor]:
    """Records ``run`` after a warm-up on a stream of its own, as capture wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = run()
    return graph.replay, out


def _copied(into: list[Tensor], new: list[Tensor]) -> bool:
    """Whether the new content could be written over the old."""
    if [(x.shape, x.dtype, x.device) for x in into] != [(x.shape, x.dtype, x.device) for x in new]:
        return False
    for fixed, content in zip(into, new, strict=True):
        fixed.copy_(content)
    return True


def _text_tensors(text: PreparedText | None) -> list[Tensor]:
    return [] if text is None else [tensor for pair in text.keys_values for tensor in pair]


def _history_tensors(history: PreparedHistory | None) -> list[Tensor]:
    return [] if history is None else [history.tokens, history.rope]
