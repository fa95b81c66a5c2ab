"""A history from an image (image to video) or from a clip (video to video), as the reference begins them.

One generator draws everything, in the reference's order: the VAE's samples first, then
sigma and noise of the anchor, then sigma and noise of what fills the history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import HeliosError, reason, shortened
from ..networks.vae import WanVAE
from ..variants import CHUNK_FRAMES, CHUNK_LATENT_FRAMES
from .history import CONTEXT_FRAMES, History

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Frames [B,3,4n+1,H,W] in -1..1 -> mean and standard deviation of the latents [B,16,n+1,H/8,W/8] (VAE space)."""


@dataclass(frozen=True)
class NoiseRange:
    """Sigmas of the noise that is mixed into reference latents, drawn uniformly from ``low``..``high``.

    The released range is .111 to .135; more noise lets the video move away from a still reference.
    """

    low: float = 0.111
    high: float = 0.135

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise HeliosError(
                f"noise sigma range {self.low} to {self.high} is not within 0 to 1 in rising order; "
                "the released one is 0.111 to 0.135."
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` sigmas [1,1,count,1,1]."""
        drawn = torch.rand(count, generator=generator, device=generator.device)
        return (drawn * (self.high - self.low) + self.low).view(1, 1, -1, 1, 1)


def image_history(
    image: Tensor,
    encode: Encode,
    normalise: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    seed: int | None = None,
    noise: NoiseRange | None = None,
) -> History:
    """The history of image-to-video: the image is the anchor, and its still clip the last history frame.

    Args:
        image: [B,3,H,W] in -1..1 at the size of the video.
        encode: the VAE; ``normalise`` takes its latents to model space.
        noise: the released range where absent.
    """
    noise = noise or NoiseRange()
    frame = image.unsqueeze(2)
    anchor = normalise(_sampled(encode(frame), generator))
    still = normalise(_sampled(encode(frame.repeat(1, 1, CHUNK_FRAMES, 1, 1)), generator))[:, :, -1:]
    anchor = _noised(anchor, noise, 1, generator)
    still = _noised(still, noise, 1, generator)
    return _begun(anchor, still, generator, seed)


def video_history(
    frames: Tensor,
    encode: Encode,
    normalise: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    seed: int | None = None,
    noise: NoiseRange | None = None,
) -> History:
    """The history of video-to-video: whole chunks from the clip's end, each encoded on its own.

    The anchor is the clip's first frame, also where the chunks begin later.

    Args:
        frames: [B,3,F,H,W] in -1..1 at the size of the video, F at least 33.

    Raises:
        HeliosError: fewer than 33 frames.
    """
    noise = noise or NoiseRange()
    count = frames.shape[2]
    chunks = count // CHUNK_FRAMES
    if not chunks:
        raise HeliosError(f"video has {count} frames; give a clip of at least {CHUNK_FRAMES}, which is one chunk.")
    anchor = normalise(_sampled(encode(frames[:, :, :1]), generator))
    used = frames[:, :, count - chunks * CHUNK_FRAMES :].split(CHUNK_FRAMES, dim=2)
    encoded = [normalise(_sampled(encode(chunk), generator)) for chunk in used]
    anchor = _noised(anchor, noise, 1, generator)
    noised = [_noised(chunk, noise, CHUNK_LATENT_FRAMES, generator) for chunk in encoded]
    return _begun(anchor, torch.cat(noised, dim=2), generator, seed)


def still_clip(image: Tensor, encode: Encode, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """Latents of a chunk in which an image stands still, [B,16,9,H/8,W/8], at their mean.

    Args:
        image, encode, normalise: as for :func:`image_history`.
    """
    mean, _ = encode(image.unsqueeze(2).repeat(1, 1, CHUNK_FRAMES, 1, 1))
    return normalise(mean)


def media_history(
    media: Tensor, is_image: bool, batch: int, vae: WanVAE, device: torch.device, generator: torch.Generator,
    noise: NoiseRange,
) -> History:  # fmt: skip
    """The history that frames [B,3,F,H,W] in -1..1 begin, as an image or as a clip, for ``batch`` films.

    Raises:
        HeliosError: ``batch`` films cannot share B of them, or the clip is too short.
    """
    if batch % media.shape[0]:
        raise HeliosError(
            f"image or video has a batch of {media.shape[0]} for {batch} prompts; give one, or one per prompt."
        )
    begin, shown = (image_history, media[:, :, 0]) if is_image else (video_history, media)
    with vae.at_work(device):
        history = begin(shown.to(device, vae.dtype), vae.encode, vae.normalise, generator, noise=noise)
    return history.repeated(batch // media.shape[0])


def encoded_still(media: Tensor, vae: WanVAE, device: torch.device) -> Tensor:
    """:func:`still_clip` of the first of frames [B,3,F,H,W] in -1..1."""
    with vae.at_work(device):
        return still_clip(media[:, :, 0].to(device, vae.dtype), vae.encode, vae.normalise)


def encoded_frame(media: Tensor | None, vae: WanVAE, device: torch.device) -> Tensor:
    """The mean latent [B,16,1,h,w] of the first of frames [B,3,F,H,W] in -1..1, normalised model space."""
    assert media is not None
    with vae.at_work(device):
        return vae.normalise(vae.encode(media[:, :, :1].to(device, vae.dtype))[0])


def _sampled(distribution: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    mean, std = distribution
    drawn = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
    return mean + std * drawn.to(mean.device)


def _noised(latents: Tensor, noise: NoiseRange, sigmas: int, generator: torch.Generator) -> Tensor:
    """(1-s)*x + s*e in float32 on the generator's device."""
    sigma = noise.draw(sigmas, generator)
    latents = latents.to(generator.device, torch.float32)
    drawn = torch.randn(latents.shape, generator=generator, device=generator.device)
    return sigma * drawn + (1 - sigma) * latents


def _begun(anchor: Tensor, latents: Tensor, generator: torch.Generator, seed: int | None) -> History:
    batch, channels, _, h, w = latents.shape
    before = latents.new_zeros(batch, channels, CONTEXT_FRAMES, h, w)
    return History(
        latents=torch.cat([before, latents], dim=2)[:, :, -CONTEXT_FRAMES:],
        anchor=anchor,
        seed=seed,
        random_state=generator.get_state(),
    )


def media_frames(image: Any, video: Any, width: int, height: int, image_name: str = "image") -> Tensor | None:
    """What a caller gave as image or video -> frames [B,3,F,H,W] in -1..1; None where both are absent.

    Raises:
        HeliosError: both given, or not frames of the video's size.
    """
    if image is None and video is None:
        return None
    if image is not None and video is not None:
        raise HeliosError("image and video are both given; a video begins from one of them.")
    name, given = (image_name, image) if video is None else ("video", video)
    if isinstance(given, Tensor):
        frames = given.unsqueeze(1) if video is None and given.ndim == 4 else given
        frames = frames.unsqueeze(0) if frames.ndim == 4 else frames
    else:
        pictures = [given] if video is None else list(given)
        if not pictures:
            raise HeliosError("video has no frames; give at least 33.")
        frames = torch.stack([fitted(name, picture, width, height) for picture in pictures]).unsqueeze(0)
    if frames.ndim != 5 or frames.shape[2:] != (3, height, width):
        raise HeliosError(
            f"{name} has shape {list(given.shape)}; give [F,3,{height},{width}] or [B,F,3,{height},{width}] in 0..1, "
            "or PIL images."
        )
    return frames.permute(0, 2, 1, 3, 4).float() * 2 - 1


def fitted(name: str, picture: Any, width: int, height: int) -> Tensor:
    """A PIL image -> [3,H,W] in 0..1, scaled to cover the size and cropped at the centre."""
    if not isinstance(picture, Image.Image):
        raise HeliosError(f"{name} is a {type(picture).__name__}; give PIL images or a float tensor in 0..1.")
    covering = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(covering).copy()).permute(2, 0, 1).float() / 255


def read_picture(name: str, path: str | Path) -> Image.Image:
    """The picture in a file, as RGB and turned as its camera was held.

    Raises:
        HeliosError: no such file, or no picture; ``name`` is what it was given as.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HeliosError(
            f"{name} {shortened(str(path))} cannot be read ({reason(error)}); give a whole picture."
        ) from None
