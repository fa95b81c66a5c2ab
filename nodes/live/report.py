"""What a node tells while it makes a film: core's progress bar and previews, and the feed that pages watch."""

from __future__ import annotations

import math

import latent_preview
from comfy.utils import ProgressBar
from latent_preview import MAX_PREVIEW_RESOLUTION
from PIL import Image
from torch import Tensor

from ...helios_core.take.chunk import Chunk
from ...helios_core.take.history import History
from ...helios_core.take.progress import RenderProgress
from ...helios_core.variants import FPS
from ..adapters.chunk_source import NodeChunks
from .events import TakeFeed, watched
from .thumbnails import latent_thumbnail


class FilmReport:
    """Counts the steps of ``source`` and shows them; a node that pages watch sets ``feed`` before the first chunk."""

    def __init__(self, source: NodeChunks, start: History, fps: float = FPS, progress: RenderProgress | None = None):
        self.progress = RenderProgress(source.steps, fps) if progress is None else progress
        self.bar = ProgressBar(self.progress.total_steps)
        self.feed: TakeFeed | None = None
        self._first, self._latent_height = start.chunk, start.latents.shape[-2]
        self._finest = int(math.log2(source.guider.sampler.settings.size_multiple)) - 4
        self._latent_format = source.model.model.latent_format
        self._previewer = latent_preview.get_previewer(source.model.load_device, self._latent_format)
        source.on_step = self.step

    def step(self, step: int, x0: Tensor, _x: Tensor, total: int) -> None:
        """Core's callback: step number ``step``, from 0, of the chunk at work is done."""
        preview = None
        if self._previewer is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", x0)
        self.progress.step()
        self.bar.update_absolute(self.progress.position, self.progress.total_steps, preview)
        stage = self._finest - round(math.log2(self._latent_height / x0.shape[-2]))
        if self.feed is not None:
            self.feed.sampling(self._first + self.progress.chunks_done, stage, step + 1, total)

    def finished(self, chunk: Chunk) -> None:
        """Counts and tells of a chunk that stays undecoded; its thumbnail comes from its latents, in VAE space."""
        if chunk.reused:
            self.progress.reuse()
        self.progress.chunk()
        self.bar.update_absolute(self.progress.position)
        if self.feed is not None:
            if chunk.departed:
                self.feed.departed(chunk.index)
            thumbnail = None
            if watched():
                thumbnail = latent_thumbnail(chunk.latents, self._latent_format, self._previewer, self.progress.fps)
            self.feed.finished(chunk.index, chunk.reused, thumbnail)


class RenderReport(FilmReport):
    """A film that is decoded: with previews of its newest frames.

    A ``FilmObserver`` (``helios_core.take.render``).
    """

    feed: TakeFeed

    def decoding(self, chunk: Chunk) -> None:
        if chunk.reused:
            self.progress.reuse()
        if chunk.departed:
            self.feed.departed(chunk.index)
        self.feed.decoding(chunk.index, chunk.reused)

    def decoded(self, chunk: Chunk, frames: Tensor | None) -> None:
        self.progress.chunk()
        preview = None
        if frames is not None:
            preview = ("JPEG", Image.fromarray(frames[-1].numpy()), MAX_PREVIEW_RESOLUTION)
        self.bar.update_absolute(self.progress.position, self.progress.total_steps, preview)

    def on_disk(self, index: int, reused: bool, segment: str) -> None:
        self.feed.finished(index, reused, segment=segment)

    def writing(self) -> None:
        """Pages see it: every chunk is finished, and the take runs."""
