"""Helios Render Video: a film of any length, chunk by chunk to disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..helios_core.errors import HeliosError
from ..helios_core.take.chunk import Chunk
from ..helios_core.take.film import Film
from ..helios_core.take.render import render_film, render_to_store
from ..helios_core.take.seed_changes import parse_seed_changes
from ..helios_core.take.take import Take, check_name, name_for
from ..helios_core.video.audio import shifted
from ..helios_core.video.growing import PARTIAL_SUFFIX
from ..helios_core.video.segments import CODECS, VideoSettings
from .adapters.chunk_source import NodeChunks
from .adapters.graph_checks import check_node
from .adapters.identity import vae_identity
from .adapters.model_files import check_prefix, save_path
from .adapters.sockets import Least
from .adapters.takes import (
    check_batch,
    check_seed_changes,
    manifest_settings,
    output_store,
    seed_changes_input,
    take_input,
    warn_of_late_changes,
)
from .chunks import chunk_inputs, num_chunks_input
from .history import HistoryType
from .live.events import TakeFeed
from .live.report import RenderReport

MAX_TRIES = 1000
LONGEST_OFFSET = 36_000.0  # seconds, longer than any film


def fps_input(about: str) -> io.Float.Input:
    return io.Float.Input(
        "fps",
        default=24.0,
        optional=True,
        min=Least(1.0),
        max=240.0,
        step=1.0,
        round=0.001,
        tooltip=f"Frames per second of the file. {about}",
    )


def file_inputs(prefix: str, about_quality: str = "", about_prefix: str = "") -> list[io.Input]:
    """Codec, quality and name of a film's file; the texts follow what every film's say."""
    return [
        io.Combo.Input(
            "codec",
            options=list(CODECS),
            default=CODECS[0],
            optional=True,
            tooltip="h264 plays everywhere; hevc makes smaller files at the same quality.",
        ),
        io.Int.Input(
            "quality",
            default=18,
            optional=True,
            min=0,
            max=51,
            tooltip="The encoder's crf: lower is better and larger. 18 looks lossless, 23 is usual for the "
            f"web.{about_quality}",
        ),
        io.String.Input(
            "filename_prefix",
            default=prefix,
            optional=True,
            tooltip=f"Where in the output folder, as in Save Video.{about_prefix}",
        ),
    ]


def audio_input() -> io.Audio.Input:
    return io.Audio.Input("audio", optional=True, tooltip="A sound track, cut to the film's length.")


def audio_offset_input() -> io.Float.Input:
    return io.Float.Input(
        "audio_offset",
        default=0.0,
        optional=True,
        min=Least(-LONGEST_OFFSET),
        max=LONGEST_OFFSET,
        step=0.1,
        round=0.001,
        advanced=True,
        tooltip="Seconds of film before the sound begins; below 0 so many seconds of the sound are left out.",
    )


class HeliosRenderVideo(io.ComfyNode):
    """Renders a film of any length to a file, in constant memory; a render that was stopped goes on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosRenderVideo",
            display_name="Helios Render Video",
            category="Helios/video",
            description="Renders a film chunk by chunk straight to disk: memory does not grow with its length, and "
            "finished chunks survive an interrupt, an error or a crash. Queue the same workflow again and it goes on "
            "where it stopped; change the prompt in the middle and only what follows is made again.",
            search_aliases=["helios long video", "helios save video", "helios resume", "helios streaming"],
            is_output_node=True,
            inputs=[
                *chunk_inputs(),
                num_chunks_input(),
                io.Vae.Input("vae", tooltip="Helios VAE Loader, or core's Load VAE with the Wan 2.1 VAE."),
                fps_input("Helios was trained on 24."),
                *file_inputs(
                    "video/Helios",
                    " Changing it encodes the film again and samples nothing.",
                    f" While it renders, a playable file of all finished chunks lies there as <name>{PARTIAL_SUFFIX}.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    optional=True,
                    tooltip="Uses finished chunks from earlier renders. Off makes every chunk anew.",
                ),
                take_input(),
                audio_input(),
                seed_changes_input(),
                # Last: workflow files hold widgets by their place.
                audio_offset_input(),
                io.Boolean.Input(
                    "write_file",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Off renders into the store alone: no film is written, and video is the last chunk's part. "
                    "The film strip makes versions of a chunk this way.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="The file on disk; Save Video copies it without encoding it again."
                ),
                HistoryType.Output(display_name="history", tooltip="What the next chunk continues from."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, seed_changes: str | None = None) -> bool | str:
        # The only input that is named: core repeats a message once for every one.
        return check_node() and check_seed_changes(seed_changes)

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        cfg,
        sampler,
        history,
        seed,
        num_chunks,
        vae,
        fps=24.0,
        codec=CODECS[0],
        quality=18,
        filename_prefix="video/Helios",
        resume=True,
        take="",
        audio=None,
        seed_changes="",
        audio_offset=0.0,
        write_file=True,
    ) -> io.NodeOutput:
        changes = parse_seed_changes(seed_changes)
        settings = VideoSettings(history.width, history.height, fps, codec, quality)
        check_batch(history.latents.shape[0])
        if audio is not None:
            audio = shifted(audio, audio_offset)
        if take:
            check_name(take)
        target = Target(filename_prefix, history.width, history.height)
        source = NodeChunks(model, positive, negative, cfg, sampler, history, num_chunks)
        warn_of_late_changes(changes, history, num_chunks)
        film = Film(source, history, num_chunks, seed, changes)
        key = film.first_key
        named = take or name_for(target.name, f"-{key[:8]}")
        store = output_store()
        report = RenderReport(source, history, fps)
        report.feed = TakeFeed(
            report.progress, history, seed, changes, named, cls.hidden, store, store_only=not write_file
        )
        settings_kept = manifest_settings(history, seed, num_chunks, cls.hidden.prompt, changes)
        record = Take(store, named, settings_kept | report.feed.remembered(), resume)
        # "take-": core would read eight digits after the name as the number of a finished file.
        growing = target.folder / f"{target.name}_take-{key[:8]}{PARTIAL_SUFFIX}"
        chunks = _interruptible(film.chunks(record))
        if not write_file:
            with report.feed:
                path, history = render_to_store(
                    chunks, record, settings, vae_identity(vae), lambda latents: decoded(vae, latents), report
                )
            return io.NodeOutput(InputImpl.VideoFromFile(str(path)), history)
        with report.feed:
            path, history = render_film(
                chunks,
                record,
                growing,
                settings,
                vae_identity(vae),
                lambda latents: decoded(vae, latents),
                target.publish,
                report,
                audio,
                partial(file_metadata, cls.hidden),
            )
            report.feed.published(path)
        saved = ui.SavedResult(path.name, target.subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), history, ui=ui.PreviewVideo([saved]))


def file_metadata(hidden: Any) -> dict[str, Any]:
    """The workflow, as core's Save Video writes it."""
    if args.disable_metadata:
        return {}
    prompt = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    return {**(hidden.extra_pnginfo or {}), **prompt}


def _interruptible(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Stops between chunks too: those from the store are found without core looking for an interrupt."""
    for chunk in chunks:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield chunk


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """One chunk's latents in VAE space -> uint8 frames [33,H,W,3] on the CPU, rounded as diffusers does."""
    frames = vae.decode(latents).flatten(0, -4)
    return frames.clamp(0, 1).mul_(255).round_().to("cpu", torch.uint8)


class Target:
    """Where a finished film goes: the next free number of a prefix in the output folder."""

    def __init__(self, prefix: str, width: int, height: int):
        check_prefix(prefix)
        folder, self.name, self._counter, self.subfolder = save_path(prefix, width, height)
        self.folder = Path(folder)

    def publish(self, finished: Path) -> Path:
        """Gives ``finished`` the next free name; another process may be taking names at the same time."""
        for counter in range(self._counter, self._counter + MAX_TRIES):
            path = self.folder / f"{self.name}_{counter:05}_.mp4"
            with contextlib.suppress(FileExistsError):
                _renamed(finished, path)
                return path
        raise HeliosError(f"{self.folder} has no free number left for {self.name}; choose another filename_prefix.")


def _renamed(finished: Path, path: Path) -> None:
    """Renames without replacing what is there.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(finished, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: an empty file holds the name for a moment
        path.touch(exist_ok=False)
        finished.replace(path)
