"""A pipeline's film to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..video.growing import PARTIAL_SUFFIX
from ..video.segments import VideoSettings
from .chunk import Chunk
from .history import History
from .render import FilmObserver, render_film
from .take import Take
from .video import Frames


class FilmPipeline(Protocol):
    """What is asked of a :class:`~helios_core.pipeline.HeliosPipeline`."""

    def stream(self, *arguments: Any, **keywords: Any) -> Iterator[Chunk]: ...

    def frames(self, latents: Tensor) -> Frames: ...

    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor: ...

    def encode_anchor(self, picture: Any, width: int, height: int) -> Tensor: ...

    def steps_per_chunk(self, num_frames: int, **sampling: Any) -> list[int]: ...

    def fingerprint(self, *parts: str) -> str: ...


def write_film(
    pipeline: FilmPipeline,
    chunks: Iterator[Chunk],
    take: Take,
    output: Path,
    settings: VideoSettings,
    observer: FilmObserver,
    metadata: Callable[[], Mapping[str, Any]] = dict,
    finish_always: bool = False,
) -> tuple[Path, History]:
    """Keeps finished chunks in the take's store, and while rendering a playable file of them beside ``output``.

    Args:
        chunks: the pipeline's, undecoded, which ``take`` keeps.
        metadata, finish_always: as for :func:`render_film`.

    Raises:
        HeliosError: as :func:`render_film`.
    """
    return render_film(
        chunks,
        take,
        output.with_name(output.stem + PARTIAL_SUFFIX),
        settings,
        pipeline.fingerprint("vae"),
        pipeline.frames,
        lambda finished: finished.replace(output),
        observer,
        metadata=metadata,
        finish_always=finish_always,
    )
