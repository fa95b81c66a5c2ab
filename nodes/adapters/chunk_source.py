"""The chunks of one node: what its inputs make of a film, and what its chunks depend on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from ...helios_core.errors import HeliosError
from ...helios_core.samplers import ChunkSampler, end_frames, in_force
from ...helios_core.take.film import check_film
from ...helios_core.take.history import History
from ...helios_core.variants import VARIANTS
from .guider import HeliosGuider, OnStep
from .identity import conditioning_identity, model_identity, sampler_identity
from .sampler import HeliosSampler, check_model, check_options, foreign_sampler
from .schedule import conditioning_at, schedule_of
from .warnings import warn


class NodeChunks:
    """A ``ChunkSource`` (``helios_core.take.film``) over a MODEL; ``on_step`` is set before the first chunk.

    Raises:
        HeliosError: an input that does not fit the others.
    """

    def __init__(
        self, model: Any, positive: list, negative: list, cfg: float, sampler: Any, history: History, num_chunks: int
    ):
        if not isinstance(sampler, HeliosSampler):
            raise foreign_sampler(type(sampler).__name__)
        check_model(model.model, model.get_model_object("model_sampling"), sampler.settings)
        check_options(model.model_options, sampler.settings, cfg > 1)
        check_film(sampler.settings, history, num_chunks)
        _warn_of_guidance(model.model.variant, cfg)
        _warn_of_end(sampler.settings, history.chunk + num_chunks - 1, num_chunks)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_conditioning(name, conditioning)
        self.model, self.positive, self.negative = model, positive, negative
        self.guider = HeliosGuider(model, cfg, sampler)
        self.steps = [sampler.settings.total_steps(history.chunk + i) for i in range(num_chunks)]
        self.on_step: OnStep = lambda *_: None

    def sample(self, history: History, seed: int | None) -> tuple[Tensor, History]:
        """The next chunk's latents in VAE space [B,16,9,H/8,W/8], and the history after it."""
        self.guider.set_prompts(*(conditioning_at(x, history.chunk) for x in (self.positive, self.negative)))
        return self.guider.sample_chunk(history, seed or 0, self.on_step)

    def determined_by(self, history: History) -> Mapping[str, Any]:
        """Model, sampler, guidance, and the prompts in force."""
        prompts = {"positive": self.positive}
        if self.guider.cfg > 1:
            prompts["negative"] = self.negative
        texts = {name: conditioning_identity(conditioning_at(x, history.chunk)) for name, x in prompts.items()}
        sampler = in_force(self.guider.sampler.settings, history.chunk)
        return {**self._fixed, "sampler": sampler_identity(sampler), **texts}

    @cached_property
    def _fixed(self) -> Mapping[str, Any]:
        return {
            "model": model_identity(self.model),
            "cfg": self.guider.cfg,
        }


def _warn_of_guidance(variant: str, cfg: float) -> None:
    """The distilled model gives what guidance gave its teacher; it runs with guidance, at twice the time."""
    if cfg > 1 and VARIANTS[variant].guidance_scale == 1:
        warn(f"cfg={cfg:g}: Helios {variant} needs no guidance. Set cfg to 1, which takes half the time.")


def _warn_of_end(sampler: ChunkSampler, last: int, num_chunks: int) -> None:
    """A film that stops before its end frame; chunks by hand come one at a time."""
    missing = max((end.last_chunk - last for end in end_frames(sampler)), default=0)
    if num_chunks > 1 and missing > 0:
        warn(f"The film ends {missing} chunks before its end frame: set num_chunks of Helios End Frame to the film's.")


def check_conditioning(name: str, conditioning: list) -> None:
    """Refuses what a pyramid of sizes cannot follow."""
    if not conditioning:
        raise HeliosError(f"{name} is empty; connect a CLIP Text Encode node.")
    for _, options in (entry for _, row in schedule_of(conditioning).rows for entry in row):
        used = [key for key in ("area", "mask", "control", "gligen") if key in options]
        if used:
            raise HeliosError(f"{name} uses {used[0]}, which Helios does not support; remove that conditioning node.")
