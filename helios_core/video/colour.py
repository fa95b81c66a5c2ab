"""The colours of a film, or its latents, held to those of its beginning or of a reference."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import HeliosError
from ..variants import CHUNK_FRAMES, CHUNK_LATENT_FRAMES

# A chunk that fades to black or white is not stretched further than this.
LARGEST_GAIN = 2.0
LEAST_SPREAD = 1 / 255
PIXELS_AT_ONCE = 2**20


def anchored(
    frames: Tensor, reference: Tensor | None = None, strength: float = 1.0, chunk_frames: int = CHUNK_FRAMES
) -> Tensor:
    """Frames [F,H,W,3] in 0..1 whose red, green and blue have the mean and spread of a reference.

    Every chunk has the map that would take it there, at its middle; between two middles the map goes over from one to
    the other, so that nothing jumps at a border that did not before.

    Args:
        reference: [N,H,W,3], any size; the first chunk where it is None.
        strength: how much of the way is gone, 0 to 1.
        chunk_frames: frames of a chunk; the last one may be shorter.

    Raises:
        HeliosError: no frames, another shape, or a setting out of its range.
    """
    for name, value in (("images", frames), ("reference", reference)):
        if value is not None and (value.ndim != 4 or value.shape[-1] < 3 or not value.shape[0]):
            raise HeliosError(f"{name} has shape {list(value.shape)}; give an IMAGE, [frames, height, width, 3].")
    _check(strength, chunk_frames)
    if strength == 0:
        return frames
    out = frames.clone()
    held = _held(frames[..., :3], None if reference is None else reference[..., :3], strength, chunk_frames)
    for begin, part in held:
        out[begin:][: len(part), ..., :3] = part.clamp_(0, 1)
    return out


def anchored_latents(
    latents: Tensor, reference: Tensor | None = None, strength: float = 1.0, chunk_frames: int = CHUNK_LATENT_FRAMES
) -> Tensor:
    """Latents [B,C,T,h,w] whose channels have the mean and spread of a reference, chunk by chunk as :func:`anchored`.

    Args:
        reference: [1,C,n,y,x] or [B,C,n,y,x]; each video's own first chunk where it is None.
        strength, chunk_frames: as there, a chunk counted in latent frames.

    Raises:
        HeliosError: as there.
    """
    _check(strength, chunk_frames)
    batch, channels = latents.shape[:2]
    if reference is not None and (len(reference) not in (1, batch) or reference.shape[1] != channels):
        raise HeliosError(
            f"reference has shape {list(reference.shape)} for latents of {list(latents.shape)}; give one video."
        )
    if strength == 0:
        return latents
    out = torch.empty_like(latents)
    for i, video in enumerate(latents):
        wanted = None if reference is None else reference[i if len(reference) > 1 else 0].movedim(0, -1)
        for begin, part in _held(video.movedim(0, -1), wanted, strength, chunk_frames):
            out[i, :, begin:][:, : len(part)] = part.movedim(-1, 0)
    return out


def _check(strength: float, chunk_frames: int) -> None:
    if not 0 <= strength <= 1:
        raise HeliosError(f"strength={strength} must be from 0 (the frames as they are) to 1.")
    if chunk_frames < 1:
        raise HeliosError(f"chunk_frames={chunk_frames} must be at least 1; a Helios chunk is {CHUNK_FRAMES} frames.")


def _held(frames: Tensor, reference: Tensor | None, strength: float, chunk_frames: int) -> Iterator[tuple[int, Tensor]]:
    """The first frame's number and the held frames of every chunk of ``frames`` [F,H,W,C]."""
    chunks = frames.split(chunk_frames)
    wanted = _statistics(chunks[0] if reference is None else reference)
    found = [wanted if reference is None and i == 0 else _statistics(chunk) for i, chunk in enumerate(chunks)]
    gains, offsets = zip(*(_map(have, wanted) for have in found), strict=True)
    middles = torch.tensor([i * chunk_frames + (len(chunk) - 1) / 2 for i, chunk in enumerate(chunks)])
    for i, chunk in enumerate(chunks):
        times = torch.arange(len(chunk)) + float(i * chunk_frames)
        gain, offset = (_between(middles, torch.stack(values), times) for values in (gains, offsets))
        # The way to the reference, as a map of its own.
        gain, offset = (1 + strength * (gain - 1), strength * offset)
        gain, offset = (x[:, None, None].to(frames) for x in (gain, offset))
        yield i * chunk_frames, chunk * gain + offset


def _statistics(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of every channel of [F,H,W,C], [C] each in double."""
    pixels = frames.reshape(-1, frames.shape[-1])
    total, squares = torch.zeros(2, frames.shape[-1], dtype=torch.float64)
    # In parts: a whole chunk in double would be twice the memory that it takes.
    for part in pixels.split(PIXELS_AT_ONCE):
        exact = part.double()
        total += exact.sum(0).cpu()
        squares += exact.square().sum(0).cpu()
    mean = total / len(pixels)
    return mean, (squares / len(pixels) - mean.square()).clamp_min(0).sqrt()


def _map(have: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Gain and offset that take one mean and spread to another."""
    (mean, spread), (aim, aimed_spread) = have, wanted
    gain = (aimed_spread / spread.clamp_min(LEAST_SPREAD)).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    flat = (spread < LEAST_SPREAD) | (aimed_spread < LEAST_SPREAD)
    gain = torch.where(flat, torch.ones_like(gain), gain)
    return gain, aim - gain * mean


def _between(middles: Tensor, values: Tensor, times: Tensor) -> Tensor:
    """``values`` [n,C], which hold at ``middles`` [n], at ``times`` [t]: on straight lines, and level outside."""
    if len(middles) == 1:
        return values.expand(len(times), -1)
    right = torch.searchsorted(middles, times.to(middles)).clamp(1, len(middles) - 1)
    begin, end = middles[right - 1], middles[right]
    share = ((times - begin) / (end - begin)).clamp(0, 1).double()[:, None]
    return torch.lerp(values[right - 1], values[right], share)
