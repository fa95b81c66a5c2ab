"""Jobs to films with a pipeline that stays loaded: what a farm's and a service's workers do."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..checkpoint import open_transformer
from ..checkpoint.options import LoadOptions
from ..distributed.farm_worker import Watch
from ..distributed.jobs import Job
from ..distributed.members import Members, end_process
from ..errors import HeliosError, shortened
from ..networks.parallel.team import LostProcessError
from ..pipeline import HeliosPipeline
from ..samplers import ChunkSampler, SchedulerConfig, sampler_of
from ..take.fingerprint import fingerprint, folder_fingerprint
from ..take.headless import write_film
from ..take.history import check_size
from ..take.reference import read_picture
from ..take.take import Take
from ..variants import RELEASED_SIZE, VARIANTS
from ..video.reader import VideoReader
from .download import NEEDED
from .embedded import SMALL_PREFIX, TINY_NAMES, TINY_PREFIX, TINY_SIZE, embedded
from .films import load_pipeline, sampling, together
from .tiny import write_tiny

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


class PipelineRenderer:
    """A :class:`~helios_core.distributed.farm_worker.Renderer`; the last model that it used stays loaded.

    Args:
        loading: keywords of :func:`load_pipeline`.
        processes: that make each film together, half of them for the negative prompt with ``cfg_parallel``.

    Raises:
        HeliosError: processes that have no half.
    """

    def __init__(self, loading: Mapping[str, Any], processes: int = 1, cfg_parallel: bool = False):
        if cfg_parallel and processes % 2:
            raise HeliosError(f"cfg_parallel=True needs an even number of processes, not {processes}; give another.")
        self.processes, self._members = processes, Members(processes - 1)
        self._loading, self._together = dict(loading), together(processes, cfg_parallel)
        self._loaded: tuple[str, HeliosPipeline] | None = None
        self._tiny: tempfile.TemporaryDirectory[str] | None = None

    def checked(self, job: Job) -> Job:
        """See :class:`Renderer`; a model that another machine has is checked there."""
        job.check_media()
        sampler = _sampler(job)
        if sampler is not None:
            check_size(job.width, job.height, sampler.size_multiple)
        # Workers have another current folder; other machines have the pack and the hub's cache elsewhere.
        is_folder = job.model not in TINY_NAMES and Path(job.model).is_dir()
        return replace(job, model=str(Path(job.model).resolve())) if is_folder else job

    def identity(self, model: str) -> str:
        """See :class:`Renderer`."""
        folder = model_folder(model)
        parts = model if folder is None else [folder_fingerprint(folder / part) for part in PARTS]
        return fingerprint(parts, self._loading, *self._inexact())

    def _inexact(self) -> tuple[str, ...]:
        """Options under which the number of processes decides the film."""
        named = {name: self._loading[name] for name in ("attention", "fp8_matmul") if name in self._loading}
        return LoadOptions(**named, processes=self.processes).inexact if self.processes > 1 else ()

    def render(self, job: Job, take: Take, target: Path, watch: Watch) -> None:
        """See :class:`Renderer`. This process ends where another one of the film is lost."""
        try:
            self._render(job, take, target, watch)
        except LostProcessError as error:
            end_process(error)
        except Exception:
            crew = self._loaded[1].crew if self._loaded is not None else None
            if crew is not None and not crew.whole:
                self._unload()
            raise

    def _render(self, job: Job, take: Take, target: Path, watch: Watch) -> None:
        media = _media(job)
        pipeline = self._pipeline(job.model)
        steps = sampling(job.steps)
        counter = watch(pipeline.steps_per_chunk(job.frames, **steps))
        request = {
            "prompt_schedule": job.rows,
            "blend": job.blend,
            "negative_prompt": job.negative_prompt,
            "width": job.width,
            "height": job.height,
            "num_frames": job.frames,
            "guidance_scale": job.guidance,
            "generator": torch.Generator("cpu").manual_seed(job.seed),
            "seed_changes": job.seed_changes,
            "on_step": counter.on_step,
            **steps,
            **media,
        }
        chunks: Any = pipeline.stream(**request, output_type="latent", take=take)
        with contextlib.closing(chunks):  # now and not some time later: it ends the film for other processes, too
            write_film(pipeline, chunks, take, target, job.settings, counter)

    def _pipeline(self, model: str) -> HeliosPipeline:
        if self._loaded is None or self._loaded[0] != model:
            self._unload()  # two do not fit one device
            self._loaded = model, self._load(self._folder(model))
        return self._loaded[1]

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded[1].close()
        self._loaded = None
        self._members.dismiss()

    def _load(self, folder: Path) -> HeliosPipeline:
        """The pipeline, in all processes of a film; those that cannot load it are gone."""
        loading = self._loading | self._together
        if self.processes > 1:
            self._members.gather(partial(_follower, folder, loading))
        try:
            return load_pipeline(folder, **loading)
        except Exception:
            self._members.dismiss()
            raise

    def _folder(self, model: str) -> Path:
        if model in TINY_NAMES:
            if self._tiny is None:
                self._tiny = tempfile.TemporaryDirectory(prefix="helios-tiny-")
            folder = Path(self._tiny.name) / model
            return folder if folder.is_dir() else write_tiny(folder, model.removeprefix(TINY_PREFIX))
        found = model_folder(model)
        if found is None:
            raise HeliosError(
                f"model {shortened(model)} is neither a folder on this machine nor in its hub cache; give a released "
                "folder that all workers see, or download it there."
            )
        return found


def _follower(folder: Path, loading: Mapping[str, Any]) -> Callable[[], None]:
    """What a film's other processes do, once their pipeline is there."""
    return load_pipeline(folder, **loading).follow


def _sampler(job: Job) -> ChunkSampler | None:
    """The sampler that will make the film; None where the model is not here."""
    if job.model in TINY_NAMES:
        variant = VARIANTS[job.model.removeprefix(TINY_PREFIX)]
        name, scheduler, zero_star = variant.name, variant.scheduler, variant.zero_star
    else:
        folder = model_folder(job.model)
        if folder is None:
            return None
        source = open_transformer(folder)
        name, scheduler, zero_star = source.variant, source.scheduler, source.is_cfg_zero_star
    return sampler_of(name, SchedulerConfig.from_dict(scheduler), zero_star, **sampling(job.steps))


def model_folder(model: str) -> Path | None:
    """Where a model lies on this machine: a folder, one of the pack's, or a repository in the hub's cache."""
    if model.startswith(SMALL_PREFIX) and model.removeprefix(SMALL_PREFIX) in VARIANTS:
        return embedded(model.removeprefix(SMALL_PREFIX)).folder
    with contextlib.suppress(OSError, ValueError):  # a name that no file system takes
        if Path(model).is_dir():
            return Path(model).resolve()
    return _cached(model) if model.count("/") == 1 else None


def model_size(model: str) -> tuple[int, int]:
    """Width and height that a model is made for."""
    if model in TINY_NAMES:
        return TINY_SIZE
    folder = model_folder(model)
    known = {small.folder: small.size for small in map(embedded, VARIANTS) if small.folder is not None}
    return known.get(folder, RELEASED_SIZE) if folder is not None else RELEASED_SIZE


def _cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(NEEDED)))
    return None


def _media(job: Job) -> dict[str, Any]:
    """The pipeline's ``image`` or ``video`` as PIL images.

    Raises:
        HeliosError: absent here, or no picture or video.
    """
    job.check_media()
    if job.video:
        with VideoReader(job.video) as reader:
            return {"video": [Image.fromarray(frame) for frame in reader]}
    return {"image": read_picture("image", job.image)} if job.image else {}
