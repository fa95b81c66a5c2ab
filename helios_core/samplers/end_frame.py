"""An end frame: the last latent frames of a film are pulled towards an image while they are sampled.

No Helios model was trained to end on a given image; this is a guidance of ours, and inexact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HeliosError
from ..variants import CHUNK_LATENT_FRAMES, LATENT_CHANNELS, LATENT_SCALE
from .sampler import ChunkSampler
from .schedule import Stage
from .step import OnStep, Steer, Velocity

MOST_GUIDED = 100
# How slowly the pull grows: its share is this power of the way through the guided chunks.
RAMP = 3.0


@dataclass(frozen=True, eq=False)
class EndFrame:
    """A :class:`.sampler.ChunkSampler` whose film ends on an image; chunks that are not guided are ``sampler``'s.

    At every step the clean latents that the network predicts are moved a share of the way to the image's. The share
    grows from the first guided chunk's beginning to the last frame's end, where it is ``strength``.

    Attributes:
        image: latents of a still clip of the image, [1,16,9,H/8,W/8] or [B,16,9,H/8,W/8], normalised model space.
        last_chunk: number of the chunk that ends on the image.
        guided_chunks: how many chunks are guided, the last one included.
        strength: the pull on the last latent frame, 0 to 1; at 1 it is the image's own.

    Raises:
        HeliosError: a setting out of its range.
    """

    sampler: ChunkSampler
    image: Tensor
    last_chunk: int
    guided_chunks: int = 1
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_end(self.strength, self.guided_chunks)
        if self.image.shape[1:3] != (LATENT_CHANNELS, CHUNK_LATENT_FRAMES):
            raise HeliosError(f"the end frame has shape {list(self.image.shape)}; give latents [1,16,9,H/8,W/8].")

    @property
    def variant(self) -> str:
        return self.sampler.variant

    @property
    def zero_star(self) -> bool:
        return self.sampler.zero_star

    @property
    def size_multiple(self) -> int:
        return self.sampler.size_multiple

    def total_steps(self, chunk: int) -> int:
        return self.sampler.total_steps(chunk)

    def guides(self, chunk: int) -> bool:
        """Whether chunk number ``chunk`` is pulled towards the image."""
        return self.strength > 0 and 0 <= self.last_chunk - chunk < self.guided_chunks

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        generator: torch.Generator,
        chunk: int,
        guided: bool = False,
        on_step: OnStep | None = None,
        dtype: torch.dtype = torch.float32,
        steer: Steer | None = None,
    ) -> Tensor:
        """See :meth:`.sampler.ChunkSampler.sample`; its own pull comes after ``steer``."""
        pull = self._pull(chunk, noise.device) if self.guides(chunk) else None
        both = steer if pull is None else pull if steer is None else _after(steer, pull)
        return self.sampler.sample(velocity, noise, generator, chunk, guided, on_step, dtype, both)

    def _pull(self, chunk: int, device: torch.device) -> Steer:
        first = (chunk - self.last_chunk + self.guided_chunks - 1) * CHUNK_LATENT_FRAMES
        way = torch.arange(first + 1, first + 1 + CHUNK_LATENT_FRAMES) / (self.guided_chunks * CHUNK_LATENT_FRAMES)
        share = (self.strength * way**RAMP).view(1, 1, -1, 1, 1).to(device)

        def pull(latents: Tensor, velocity: Tensor, sigma: float, stage: Stage) -> Tensor:
            image = self._image(latents.shape[-2], latents.shape[-1], latents.device)
            x, v = latents.float(), velocity.float()
            return (v - (1 - stage.noise_end) * share * (image - clean(x, v, sigma, stage)) / sigma).to(velocity.dtype)

        return pull

    @cached_property
    def _images(self) -> dict[tuple[int, int, torch.device], Tensor]:
        return {}

    def _image(self, height: int, width: int, device: torch.device) -> Tensor:
        """The image at a stage's resolution, averaged as training makes its coarser clips; once for all steps."""
        place = (height, width, device)
        if place not in self._images:
            image = self.image.to(device, torch.float32)
            self._images[place] = F.interpolate(image, (CHUNK_LATENT_FRAMES, height, width), mode="area")
        return self._images[place]


def clean(latents: Tensor, velocity: Tensor, sigma: float, stage: Stage) -> Tensor:
    """The latents without noise that a velocity stands for, [B,16,9,h,w].

    A stage goes from s = a*noise + (1-a)*x to e = b*noise + (1-b)*x, and its velocity is s - e; ``sigma`` is what is
    left of that way.
    """
    end = latents - sigma * velocity
    a, b = stage.noise_start, stage.noise_end
    return end - b / (a - b) * velocity


def _after(first: Steer, second: Steer) -> Steer:
    def both(latents: Tensor, velocity: Tensor, sigma: float, stage: Stage) -> Tensor:
        return second(latents, first(latents, velocity, sigma, stage), sigma, stage)

    return both


def in_force(sampler: ChunkSampler, chunk: int) -> ChunkSampler:
    """What makes chunk number ``chunk``: the sampler without end frames that do not guide it."""
    if not isinstance(sampler, EndFrame):
        return sampler
    inner = in_force(sampler.sampler, chunk)
    if not sampler.guides(chunk):
        return inner
    return replace(sampler, sampler=inner)


def end_frames(sampler: ChunkSampler) -> Iterator[EndFrame]:
    """The end frames of a sampler, the outermost first."""
    while isinstance(sampler, EndFrame):
        yield sampler
        sampler = sampler.sampler


def check_end(strength: float, guided_chunks: int) -> None:
    """Refuses settings that no end frame has.

    Raises:
        HeliosError: one out of its range.
    """
    if not 0 <= strength <= 1:
        raise HeliosError(f"strength={strength} must be from 0 (no end frame) to 1.")
    if not 1 <= guided_chunks <= MOST_GUIDED:
        raise HeliosError(f"guided_chunks={guided_chunks} must be from 1 to {MOST_GUIDED}.")


def check_end_frames(sampler: ChunkSampler, width: int, height: int, batch: int) -> None:
    """Refuses an end frame of another size than the film's.

    Raises:
        HeliosError: another width, height or batch.
    """
    for end in end_frames(sampler):
        videos, _, _, h, w = end.image.shape
        if (h * LATENT_SCALE, w * LATENT_SCALE) != (height, width) or videos not in (1, batch):
            raise HeliosError(
                f"the end frame is {w * LATENT_SCALE}x{h * LATENT_SCALE} and the video {width}x{height}; connect the "
                "same history to Helios End Frame and to the chunks."
            )
