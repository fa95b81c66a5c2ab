"""Helios Live Video: a film that is directed while it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui
from PIL import Image
from torch import Tensor

from ..helios_core.errors import HeliosError, reason
from ..helios_core.take.directed_film import (
    DirectedFilm,
    begun_director,
    begun_script,
    metadata_of,
    texts_of,
)
from ..helios_core.take.directions import LARGEST_BLEND
from ..helios_core.take.film import MOST_CHUNKS, Film
from ..helios_core.take.fingerprint import file_fingerprint
from ..helios_core.take.history import History
from ..helios_core.take.progress import OpenProgress
from ..helios_core.take.render import render_film
from ..helios_core.take.seed_changes import parse_seed_changes
from ..helios_core.take.take import Take, check_name, name_for
from ..helios_core.video.audio import shifted
from ..helios_core.video.growing import PARTIAL_SUFFIX
from ..helios_core.video.segments import CODECS, VideoSettings
from .adapters.graph_checks import check_node
from .adapters.identity import vae_identity
from .adapters.live_chunks import LiveChunks
from .adapters.takes import (
    check_batch,
    check_seed_changes,
    manifest_settings,
    output_store,
    seed_changes_input,
    take_input,
)
from .chunks import chunk_inputs
from .history import HistoryType
from .live.directing import LiveFeed
from .live.report import RenderReport
from .reference_histories import encoded_anchor
from .render import (
    Target,
    audio_input,
    audio_offset_input,
    decoded,
    file_inputs,
    file_metadata,
    fps_input,
)


def live_inputs() -> list[io.Input]:
    model, _, *others = chunk_inputs()
    return [
        model,
        io.Clip.Input("clip", tooltip="Encodes the prompts, those that come while it runs too."),
        io.String.Input(
            "text",
            multiline=True,
            default="a calm sea at noon",
            tooltip="What the film begins with: a prompt, or a schedule as Helios Prompt Schedule (Text) takes it, "
            "'0: a calm sea' and '7: a storm' on a line each.",
        ),
        *others,
        io.Vae.Input("vae", tooltip="Helios VAE Loader, or core's Load VAE with the Wan 2.1 VAE."),
        io.Int.Input(
            "max_chunks",
            default=0,
            min=0,
            max=MOST_CHUNKS,
            tooltip="Where the film ends unless it is stopped before; a chunk is 33 frames, 1.4 seconds at 24 fps. 0: "
            f"it goes on until you stop it, or {MOST_CHUNKS} chunks.",
        ),
        io.Int.Input(
            "blend",
            default=0,
            optional=True,
            min=0,
            max=LARGEST_BLEND,
            tooltip="Chunks over which a new prompt takes over where it does not say so itself. 0 shows it at once in "
            "the chunk it is for; released for schedules: 3.",
        ),
    ]


class HeliosLiveVideo(io.ComfyNode):
    """Renders a film that you direct while it is made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLiveVideo",
            display_name="Helios Live Video",
            category="Helios/video",
            description="Renders a film that you direct while it is made: type the next prompt, take it back, roll a "
            "chunk again, pause, give it another picture to hold on to, stop. What you say is kept: queue the node "
            "again and the film goes on, or give its schedule to Render Video and get the same film.",
            search_aliases=["helios interactive", "helios realtime", "helios endless", "helios stream"],
            is_output_node=True,
            inputs=[
                *live_inputs(),
                fps_input("Helios was trained on 24."),
                *file_inputs(
                    "video/HeliosLive",
                    about_prefix=" While it renders, a playable file of all finished chunks lies there as <name>"
                    f"{PARTIAL_SUFFIX}.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    optional=True,
                    tooltip="Goes on with the film that these inputs began earlier, with all directions that it was "
                    "given. Off begins it anew.",
                ),
                take_input(),
                audio_input(),
                seed_changes_input(),
                audio_offset_input(),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="The file on disk; Save Video copies it without encoding it again."
                ),
                HistoryType.Output(display_name="history", tooltip="What the next chunk continues from."),
                io.String.Output(
                    display_name="schedule",
                    tooltip="The prompts as they were directed, for Helios Prompt Schedule (Text).",
                ),
                io.String.Output(
                    display_name="seed_changes",
                    tooltip="The seeds of chunks that were rolled again, for seed_changes of Render Video.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, seed_changes: str | None = None) -> bool | str:
        # The only input that is named: core repeats a message once for every one.
        return check_node() and check_seed_changes(seed_changes)

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """Never the same: what is said to the film is no input of the node."""
        return float("nan")

    @classmethod
    def execute(
        cls,
        model,
        clip,
        text,
        negative,
        cfg,
        sampler,
        history,
        seed,
        vae,
        max_chunks=0,
        blend=0,
        fps=24.0,
        codec=CODECS[0],
        quality=18,
        filename_prefix="video/HeliosLive",
        resume=True,
        take="",
        audio=None,
        seed_changes="",
        audio_offset=0.0,
    ) -> io.NodeOutput:
        settings = VideoSettings(history.width, history.height, fps, codec, quality)
        check_batch(history.latents.shape[0])
        if audio is not None:
            audio = shifted(audio, audio_offset)
        if take:
            check_name(take)
        target = Target(filename_prefix, history.width, history.height)
        script = begun_script(text, blend, seed, parse_seed_changes(seed_changes))
        pictures = Pictures(vae, history)
        source = LiveChunks(
            model, clip, script, negative, cfg, sampler, history, max_chunks or MOST_CHUNKS, pictures.anchor
        )
        key = Film(source, history, 1, seed, script.seed_changes).first_key
        named = take or name_for(target.name, f"-live-{key[:8]}")
        record = Take(output_store(), named, manifest_settings(history, seed, 0, cls.hidden.prompt), resume)
        end, texts = history.chunk + (max_chunks or MOST_CHUNKS), not args.disable_metadata
        director = begun_director(record, script, key, history.chunk, end, pictures.content, texts)
        report = LiveReport(source, history, fps, max_chunks == 0)
        feed = LiveFeed(director, report.progress, history, seed, named, cls.hidden, record.store)
        report.feed = feed
        record.note(**feed.remembered())
        film = DirectedFilm(source=source, start=history, num_chunks=end - history.chunk, director=director)

        def publish(finished: Path) -> Path:
            path = target.publish(finished)
            feed.published(path)
            return path

        with feed:
            path, last = render_film(
                film.chunks(record),
                record,
                target.folder / f"{target.name}_live-{key[:8]}{PARTIAL_SUFFIX}",
                settings,
                vae_identity(vae),
                lambda latents: decoded(vae, latents),
                publish,
                report,
                audio,
                lambda: file_metadata(cls.hidden) | (metadata_of(director.script) if texts else {}),
                finish_always=True,
            )
        saved = ui.SavedResult(path.name, target.subfolder, io.FolderType.output)
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(path)),
            last,
            *texts_of(director.script).values(),
            ui=ui.PreviewVideo([saved]),
        )


@dataclass(frozen=True)
class Pictures:
    """Pictures of the input folder as anchors of a film."""

    vae: Any
    history: History

    def content(self, name: str) -> str:
        """The fingerprint of a picture. Raises HeliosError where there is none of this name."""
        folder = folder_paths.get_input_directory()
        path = Path(folder) / name
        if "\0" in name or folder_paths.annotated_filepath(name)[1] is not None:
            raise HeliosError(f"image={name!r:.80} is no picture's name; give one of the input folder.")
        if not folder_paths.is_within_directory(folder, str(path)) or not path.is_file():
            raise HeliosError(f"image={name!r:.80} is not in the input folder; upload it first.")
        try:
            with Image.open(path) as picture:
                picture.verify()
            return file_fingerprint(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise HeliosError(f"image={name!r:.80} is no picture ({reason(error)}); give another.") from None

    def anchor(self, name: str) -> Tensor:
        """A picture as core's Load Image and Helios Anchor History make an anchor of it, [1,16,1,h,w]."""
        from nodes import LoadImage  # core's

        return encoded_anchor(self.vae, LoadImage().load_image(name)[0], self.history)


class LiveReport(RenderReport):
    """A film that may go back, and whose end may be open."""

    progress: OpenProgress

    def __init__(self, source: LiveChunks, start: History, fps: float, open_end: bool):
        super().__init__(source, start, fps, OpenProgress(source.steps, fps, open_end=open_end))
        source.on_begin = lambda chunk: self.progress.begin(chunk - start.chunk)
