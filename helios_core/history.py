"""The history context: what a chunk sees of the video before it, and the random state it continues from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import HeliosError

LONG_FRAMES, MID_FRAMES, SHORT_FRAMES = 16, 2, 1
CONTEXT_FRAMES = LONG_FRAMES + MID_FRAMES + SHORT_FRAMES
CHUNK_LATENT_FRAMES = 9
CHUNK_FRAMES = 33
LATENT_CHANNELS = 16
LATENT_SCALE = 8
PIXELS_PER_TOKEN = 16
PYRAMID_MULTIPLE = 64  # what the released three stages need


@dataclass(frozen=True)
class History:
    """Immutable state between two chunks.

    Attributes:
        latents: the last 19 latent frames [B,16,19,H/8,W/8], float32, normalised model space, zeros where the
            video has not begun.
        anchor: the first latent frame of the video [B,16,1,H/8,W/8]; None before chunk 0 of text-to-video.
        chunk: index of the chunk that comes next.
        seed: what ``random_state`` was seeded with; None while nothing has been drawn.
        random_state: the CPU generator's state after the last draw.
        skip_first_chunk: anchor the video anew at chunk 1, whose beginning is livelier than a still input's. Like
            the reference's option of that name, it skips nothing.
    """

    latents: Tensor
    anchor: Tensor | None = None
    chunk: int = 0
    seed: int | None = None
    random_state: Tensor | None = None
    skip_first_chunk: bool = False

    @classmethod
    def empty(cls, width: int, height: int, batch_size: int = 1) -> History:
        """The history of text-to-video: nothing yet. Width and height in pixels, divisible by 16."""
        check_size(width, height, PIXELS_PER_TOKEN)
        if batch_size < 1:
            raise HeliosError(f"batch_size={batch_size} must be at least 1.")
        h, w = height // LATENT_SCALE, width // LATENT_SCALE
        return cls(latents=torch.zeros(batch_size, LATENT_CHANNELS, CONTEXT_FRAMES, h, w))

    @property
    def width(self) -> int:
        return self.latents.shape[-1] * LATENT_SCALE

    @property
    def height(self) -> int:
        return self.latents.shape[-2] * LATENT_SCALE

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of the next chunk's latents, [B,16,9,H/8,W/8]."""
        batch, channels, _, h, w = self.latents.shape
        return batch, channels, CHUNK_LATENT_FRAMES, h, w

    def context(self) -> tuple[Tensor, Tensor, Tensor]:
        """Short [B,16,2,h,w] (anchor first), mid [B,16,2,h,w] and long [B,16,16,h,w]: the network's input."""
        long, mid, last = self.latents.split([LONG_FRAMES, MID_FRAMES, SHORT_FRAMES], dim=2)
        anchor = torch.zeros_like(last) if self.anchor is None else self.anchor
        return torch.cat([anchor, last], dim=2), mid, long

    def after(self, chunk_latents: Tensor, generator: torch.Generator, seed: int | None) -> History:
        """The history once ``chunk_latents`` [B,16,9,h,w] is finished; this one stays as it is."""
        finished = chunk_latents.to(self.latents)
        anchors = self.anchor is None or (self.skip_first_chunk and self.chunk == 1)
        return replace(
            self,
            latents=torch.cat([self.latents, finished], dim=2)[:, :, -CONTEXT_FRAMES:],
            anchor=finished[:, :, :1].clone() if anchors else self.anchor,
            chunk=self.chunk + 1,
            seed=seed,
            random_state=generator.get_state(),
        )

    def generator(self, seed: int) -> torch.Generator:
        """The CPU generator of the next chunk.

        It continues where the last chunk stopped when ``seed`` is the one that began this video; another seed
        starts afresh, which rolls the video again from this chunk on.
        """
        generator = torch.Generator("cpu")
        if self.random_state is not None and seed == self.seed:
            generator.set_state(self.random_state)
        else:
            generator.manual_seed(seed)
        return generator


def check_size(width: int, height: int, multiple: int) -> None:
    """Refuses sizes that the patches or the pyramid cannot divide, naming the nearest ones that they can.

    Raises:
        HeliosError: width or height is not a positive multiple of ``multiple``.
    """
    for name, value in (("width", width), ("height", height)):
        if value < multiple or value % multiple:
            raise HeliosError(
                f"{name}={value} is not a positive multiple of {multiple}; use {_nearest(value, multiple)}"
                + (
                    f" ({_nearest(value, PYRAMID_MULTIPLE)} for Mid and Distilled)."
                    if multiple < PYRAMID_MULTIPLE
                    else "."
                )
            )


def _nearest(value: int, multiple: int) -> str:
    below = value // multiple * multiple
    return f"{below} or {below + multiple}" if below > 0 else f"{multiple}"
