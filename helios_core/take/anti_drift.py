"""Adaptive anti-drift at inference: a chunk that departs from the film so far is noised where later chunks see it.

Running means of the latents' mean and variance tell what the film looks like (arXiv 2603.04379). Training corrupts
histories in the same way, so the network takes a noised history for less reliable and follows it less closely.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import HeliosError, shortened
from ..variants import LATENT_CHANNELS

SETTINGS = ("momentum", "threshold", "strength")
# Far above what latents of variance 1 can depart by.
LARGEST_THRESHOLD = 100.0
PART = "anti_drift."


@dataclass(frozen=True)
class AntiDrift:
    """Settings, and the state between two chunks; the released values are the defaults.

    Attributes:
        momentum: of the running means; the newest chunk counts with what is left to 1.
        threshold: a chunk departs where both its mean and its variance are further than this from the running ones,
            as Euclidean distance over the channels, averaged over the batch.
        strength: standard deviation of the noise that is then added.
        mean, variance: the running ones [B,16], float32; None before the first chunk.
        corrupted: whether the newest chunk departed and was noised in the history.

    Raises:
        HeliosError: a setting that is no number, or out of its range.
    """

    momentum: float = 0.9
    threshold: float = 0.15
    strength: float = 0.1
    mean: Tensor | None = None
    variance: Tensor | None = None
    corrupted: bool = False

    def __post_init__(self) -> None:
        for name, most in zip(SETTINGS, (1.0, LARGEST_THRESHOLD, 1.0), strict=True):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
                raise HeliosError(
                    f"anti-drift {name}={shortened(value)} must be a number from 0 to {most:g}; "
                    f"released: {getattr(type(self), name):g}."
                )

    def continuing(self, state: AntiDrift | None) -> AntiDrift:
        """These settings, with what ``state`` has seen so far."""
        if state is None:
            return self
        return replace(state, momentum=self.momentum, threshold=self.threshold, strength=self.strength)

    def observe(self, chunk: Tensor, generator: torch.Generator) -> tuple[AntiDrift, Tensor]:
        """The state after ``chunk`` [B,16,9,h,w], and the chunk as later ones see it.

        ``generator`` draws the noise, and is not touched where there is none.
        """
        # Summed in double: the decision must not depend on the number of threads.
        exact = chunk.double()
        mean, variance = exact.mean(dim=(2, 3, 4)), exact.var(dim=(2, 3, 4))
        if self.mean is None or self.variance is None:
            return replace(self, mean=mean.float(), variance=variance.float(), corrupted=False), chunk
        running = [
            self.momentum * before.double() + (1 - self.momentum) * new
            for before, new in ((self.mean, mean), (self.variance, variance))
        ]
        away = [
            torch.linalg.vector_norm(new - so_far, dim=-1).mean().item()
            for new, so_far in zip((mean, variance), running, strict=True)
        ]
        departs = all(distance > self.threshold for distance in away)
        if departs:
            noise = torch.randn(chunk.shape, generator=generator, device=generator.device)
            chunk = chunk + self.strength * noise.to(chunk)
        return replace(self, mean=running[0].float(), variance=running[1].float(), corrupted=departs), chunk

    def parts(self) -> dict[str, Any]:
        """Its values by the names that files use."""
        return {PART + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> tuple[AntiDrift | None, dict[str, Any]]:
        """The state that ``parts`` hold, None where they hold none, and all other parts.

        Raises:
            HeliosError: a value that no state has.
        """
        own = {name.removeprefix(PART): value for name, value in parts.items() if name.startswith(PART)}
        rest = {name: value for name, value in parts.items() if not name.startswith(PART)}
        if not own:
            return None, rest
        if not own.keys() <= {field.name for field in fields(cls)}:
            raise HeliosError("the anti-drift state is of another version; update Helios.")
        return cls(**own), rest

    def fits(self, batch: int) -> bool:
        """Whether the state is that of ``batch`` videos."""
        statistics = (self.mean, self.variance)
        known = all(
            isinstance(x, Tensor)
            and x.dtype == torch.float32
            and x.shape == (batch, LATENT_CHANNELS)
            and bool(torch.isfinite(x).all())
            for x in statistics
        )
        unknown = all(x is None for x in statistics)
        return isinstance(self.corrupted, bool) and (known or (unknown and not self.corrupted))
