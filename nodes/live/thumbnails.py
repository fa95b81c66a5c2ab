"""Moving thumbnails of one chunk: small animated WebP pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import av
from latent_preview import Latent2RGBPreviewer
from PIL import Image
from torch import Tensor

from ...helios_core.variants import CHUNK_FRAMES, CHUNK_LATENT_FRAMES

WIDTH = 160
QUALITY = 70
# One picture per latent frame of the chunk.
FRAMES_BETWEEN = CHUNK_FRAMES // (CHUNK_LATENT_FRAMES - 1)


def animated_webp(pictures: Sequence[Image.Image], fps: float) -> bytes:
    """An endless loop over ``pictures``, which stand for a chunk of a film of ``fps``."""
    width, height = pictures[0].size
    size = (WIDTH, max(1, round(WIDTH * height / width)))
    first, *rest = (picture.convert("RGB").resize(size, Image.Resampling.BILINEAR) for picture in pictures)
    file = io.BytesIO()
    duration = round(1000 * CHUNK_FRAMES / fps / len(pictures))
    first.save(
        file, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, quality=QUALITY, method=2
    )  # fmt: skip
    return file.getvalue()


def segment_thumbnail(segment: bytes, fps: float) -> bytes:
    """The thumbnail of an encoded chunk."""
    return animated_webp(list(_pictures(segment)), fps)


def _pictures(segment: bytes) -> Iterator[Image.Image]:
    with av.open(io.BytesIO(segment)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % FRAMES_BETWEEN == 0:
                yield frame.to_image()


def latent_thumbnail(latents: Tensor, latent_format: Any, previewer: Any, fps: float) -> bytes | None:
    """The thumbnail of a chunk that is not decoded: its latents [B,16,9,H/8,W/8], VAE space, first of the batch.

    ``previewer`` is core's, or None where previews are off; its cheapest one then serves.
    """
    if previewer is None:
        previewer = Latent2RGBPreviewer(
            latent_format.latent_rgb_factors,
            latent_format.latent_rgb_factors_bias,
            latent_format.latent_rgb_factors_reshape,
        )
    normalised = latent_format.process_in(latents[:1].float())
    # Core's previewers show the first latent frame of what they get.
    pictures = [previewer.decode_latent_to_preview(frame) for frame in normalised.split(1, dim=2)]
    return animated_webp(pictures, fps)
