"""Helios' guider: core's CFGGuider, with the history of the chunk at work in every condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.utils import PROGRESS_BAR_ENABLED
from torch import Tensor

from ...helios_core.samplers import draw_noise
from ...helios_core.take.history import History
from .model import HISTORY_KEY
from .prepared import PREPARED_KEY, PreparedInputs
from .sampler import HeliosSampler

OnStep = Callable[[int, Tensor, Tensor, int], None]
"""Core's callback: (step from 0, x0, x, steps of the chunk)."""


class HeliosGuider(comfy.samplers.CFGGuider):
    """Samples chunks, each with one run of core's :meth:`sample`."""

    def __init__(self, model: Any, cfg: float, sampler: HeliosSampler):
        super().__init__(model.clone())
        # Guidance runs only above 1; core would also guide below.
        self.set_cfg(max(cfg, 1.0))
        self.sampler = sampler
        self._prompts: tuple[list, list] | None = None
        self._history: History | None = None
        self._prepared = PreparedInputs()

    def set_prompts(self, positive: list, negative: list) -> None:
        """The prompts in force.

        While they stay, so do the ids that core gave the conditions, and with them the prepared text.
        """
        prompts = (positive, negative)
        if self._prompts is None or any(a is not b for a, b in zip(prompts, self._prompts, strict=True)):
            self._prompts, self._prepared = prompts, PreparedInputs()
            self.set_conds(*prompts)

    def sample_chunk(self, history: History, seed: int, on_step: OnStep) -> tuple[Tensor, History]:
        """The next chunk's latents in VAE space [B,16,9,H/8,W/8], and the history after it."""
        self._history = history
        self._prepared.next_chunk()
        generator = history.seeded(torch.Generator("cpu"), seed)
        noise = draw_noise(history.chunk_shape, generator)
        sampler = _Kept(self.sampler.with_generator(generator))
        samples = self.sample(
            noise,
            torch.zeros_like(noise),
            sampler,
            torch.linspace(1.0, 0.0, self.sampler.settings.total_steps(history.chunk) + 1),
            callback=on_step,
            disable_pbar=not PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        after = history.after(sampler.latents.to("cpu"), generator, seed)
        return samples.to(comfy.model_management.intermediate_device()), after

    def outer_sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Core's, once it has copied conditions and options for this run."""
        for conds in self.conds.values():
            for cond in conds:
                cond[HISTORY_KEY] = self._history
        self.model_options.setdefault("transformer_options", {})[PREPARED_KEY] = self._prepared
        return super().outer_sample(*args, **kwargs)


class _Kept(comfy.samplers.Sampler):
    """A run's sampler with its result: core hands that on in VAE space, and the way back would round it."""

    latents: Tensor

    def __init__(self, sampler: HeliosSampler):
        self._sampler = sampler

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        self.latents = self._sampler.sample(*args, **kwargs)
        return self.latents
