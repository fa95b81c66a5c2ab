"""Chunks from a transformer, without ComfyUI: prompts in force, guidance, and where the random numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..networks.parallel.network import SharedNetwork
from ..networks.transformer import HeliosTransformer, PreparedText
from ..samplers import ChunkSampler, OnStep, Velocity, draw_noise, in_force, noise_to
from ..samplers.guidance import guided
from .history import History
from .prompts import PromptSchedule, mix_embeddings


@dataclass
class TransformerChunks:
    """A :class:`~helios_core.take.film.ChunkSource`.

    Attributes:
        schedule: prompts as text embeddings [B,512,D].
        negative: embeddings [B,512,D]; None runs without guidance.
        generator: draws a chunk's noise, then its block noise; moved on in place.
        device, dtype: of the network; noise is drawn on the generator's device and moved.
        model: tells what the network is, where chunks are kept.
        on_step: given a chunk's index, returns the callback for its steps.
    """

    transformer: HeliosTransformer | SharedNetwork
    sampler: ChunkSampler
    schedule: PromptSchedule[Tensor]
    negative: Tensor | None
    guidance_scale: float
    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype
    model: Callable[[], str]
    on_step: Callable[[int], OnStep] | None = None
    _prepared: dict[int, tuple[Tensor, PreparedText]] = field(default_factory=dict)
    _model: str = ""

    def sample(self, history: History, seed: int | None) -> tuple[Tensor, History]:
        """Latents [B,16,9,H/8,W/8], normalised model space, on the network's device, and the history after them."""
        generator = history.seeded(self.generator, seed)
        noise = noise_to(draw_noise(history.chunk_shape, generator), self.device)
        callback = None if self.on_step is None else self.on_step(history.chunk)
        is_guided = self.negative is not None
        latents = self.sampler.sample(
            self._velocity(history), noise, generator, history.chunk, is_guided, callback, self.dtype
        )
        return latents, history.after(latents, generator, seed)

    def determined_by(self, history: History) -> Mapping[str, Any]:
        """See :class:`~helios_core.take.film.ChunkSource`."""
        self._model = self._model or self.model()
        sampler = in_force(self.sampler, history.chunk)
        return {
            "model": self._model,
            "sampler": (type(sampler).__name__, sampler),
            "cfg": self.guidance_scale,
            "positive": self.schedule.at(history.chunk, mix_embeddings),
            "negative": self.negative,
        }

    def _velocity(self, history: History) -> Velocity:
        context = self.transformer.prepare_history(*(x.to(self.device, self.dtype) for x in history.context()))

        prompts = [self.schedule.at(history.chunk, mix_embeddings)]
        prompts += [] if self.negative is None else [self.negative]
        texts = [self._text(place, prompt) for place, prompt in enumerate(prompts)]

        def each(latents: Tensor, timestep: Tensor) -> list[Tensor]:
            return self.transformer.each(latents.to(self.dtype), timestep, texts, context)

        if self.negative is None:
            return lambda latents, timestep: each(latents, timestep)[0]
        return guided(each, self.guidance_scale, self.sampler.zero_star)

    def _text(self, place: int, text: Tensor) -> PreparedText:
        """Prepared once per prompt: a row in force yields the same tensor at each of its chunks."""
        known = self._prepared.get(place)
        if known is None or known[0] is not text:
            known = self._prepared[place] = (text, self.transformer.prepare_text(text))
        return known[1]
