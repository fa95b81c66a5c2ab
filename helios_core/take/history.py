"""The history context: what a chunk sees of the video before it, and the random state it continues from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import HeliosError
from ..variants import CHUNK_LATENT_FRAMES, LATENT_CHANNELS, LATENT_SCALE, PIXELS_PER_TOKEN, PYRAMID_MULTIPLE
from .anti_drift import AntiDrift

LONG_FRAMES, MID_FRAMES, SHORT_FRAMES = 16, 2, 1
CONTEXT_FRAMES = LONG_FRAMES + MID_FRAMES + SHORT_FRAMES
CUDA_STATE_BYTES = 16
# A year of film; counting further means that a file is damaged.
LAST_CHUNK = 2**25


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
        anti_drift: noises a chunk that departs from the film so far, where later chunks see it; None: never.
    """

    latents: Tensor
    anchor: Tensor | None = None
    chunk: int = 0
    seed: int | None = None
    random_state: Tensor | None = None
    skip_first_chunk: bool = False
    anti_drift: AntiDrift | None = None

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
        seen, policy = chunk_latents.to(self.latents), self.anti_drift
        if policy is not None:
            policy, seen = policy.observe(seen, generator)
        anchors = self.anchor is None or (self.skip_first_chunk and self.chunk == 1)
        return replace(
            self,
            latents=torch.cat([self.latents, seen], dim=2)[:, :, -CONTEXT_FRAMES:],
            anchor=seen[:, :, :1].clone() if anchors else self.anchor,
            chunk=self.chunk + 1,
            seed=seed,
            random_state=generator.get_state(),
            anti_drift=policy,
        )

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors and its plain values by name, which is how files hold it."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        # Left out where it is off: what is on disk, and the keys of chunks, stay as they were before there was any.
        policy = state.pop("anti_drift")
        state |= {} if policy is None else policy.parts()
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return tensors, {name: value for name, value in state.items() if not isinstance(value, Tensor)}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any], source: str, of_any_device: bool = False) -> History:
        """A history from what a file holds, where a chunk can follow it; arguments and errors as for ``checked``."""
        policy, parts = AntiDrift.from_parts(parts)
        if "latents" not in parts or not parts.keys() <= {field.name for field in fields(cls)} - {"anti_drift"}:
            raise HeliosError(f"{source} holds no history; save the history again.")
        return checked(cls(**parts, anti_drift=policy), source, of_any_device)

    def repeated(self, times: int) -> History:
        """Each video of the batch ``times`` times."""
        if times == 1:
            return self
        anchor = None if self.anchor is None else self.anchor.repeat_interleave(times, dim=0)
        return replace(self, latents=self.latents.repeat_interleave(times, dim=0), anchor=anchor)

    def seeded(self, generator: torch.Generator, seed: int | None) -> torch.Generator:
        """``generator`` as the next chunk draws from it.

        It continues where the last chunk stopped when ``seed`` is the one that began this video; another seed
        starts afresh, which rolls the video again from this chunk on.
        """
        if self.random_state is not None and seed == self.seed:
            return generator.set_state(self.random_state)
        return generator.manual_seed(0 if seed is None else seed)


def checked(history: History, source: str, of_any_device: bool = False) -> History:
    """A history that came from a file, as it is, where a chunk can follow it.

    Args:
        source: what errors call the file.
        of_any_device: whether its random state may be that of a CUDA generator, which headless callers may use.

    Raises:
        HeliosError: a value that no history has: another type, shape or size, no finite number, a part missing.
    """
    for name, fits in (
        ("latents", _are_latents(history.latents, CONTEXT_FRAMES)),
        ("anchor", history.anchor is None or _are_latents(history.anchor, 1)),
        ("chunk", type(history.chunk) is int and 0 <= history.chunk <= LAST_CHUNK),
        ("seed", history.seed is None or (type(history.seed) is int and 0 <= history.seed < 2**64)),
        ("random_state", history.random_state is None or _is_random_state(history.random_state, of_any_device)),
        ("skip_first_chunk", isinstance(history.skip_first_chunk, bool)),
        ("anti_drift", history.anti_drift is None or history.anti_drift.fits(len(history.latents))),
    ):
        if not fits:
            raise HeliosError(f"{source} has a {name} that no history has; save the history again.")
    batch, _, _, height, width = history.latents.shape
    if history.anchor is not None and history.anchor.shape != (batch, LATENT_CHANNELS, 1, height, width):
        raise HeliosError(f"{source} has an anchor of another size than its latents; save the history again.")
    if history.chunk and (history.anchor is None or history.random_state is None):
        raise HeliosError(
            f"{source} has chunk={history.chunk} but not the anchor and random state of a begun video; save the "
            "history again."
        )
    return history


def _are_latents(value: object, frames: int) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.ndim != 5:
        return False
    batch, channels, count, height, width = value.shape
    even = min(batch, height, width) > 0 and not height % 2 and not width % 2
    return even and (channels, count) == (LATENT_CHANNELS, frames) and bool(torch.isfinite(value).all())


def _is_random_state(value: object, of_any_device: bool) -> bool:
    generator = torch.Generator("cpu")
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.ndim != 1:
        return False
    if of_any_device and len(value) == CUDA_STATE_BYTES:
        return True
    try:
        generator.set_state(value)
    except RuntimeError:
        return False
    return True


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
