"""Directing a pipeline's film while it is made, from Python or the command line."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..errors import HeliosError
from ..variants import CHUNK_FRAMES, RELEASED_SIZE
from ..video.segments import VideoSettings
from .chunk import Chunk
from .directed_film import DirectedFilm, begun_director, begun_script, metadata_of
from .directions import Direction, Script
from .director import Director, TakeEndedError
from .film import MOST_CHUNKS, Film
from .fingerprint import file_fingerprint
from .headless import FilmPipeline, write_film
from .history import History
from .progress import OpenProgress
from .prompts import schedule_text
from .reference import read_picture
from .seed_changes import seed_changes_text
from .source import TransformerChunks
from .store import FOLDER_NAME, ChunkStore
from .take import Take, name_for

# Prompts that stay encoded, 8 MB each at full size: a change back and forth encodes nothing.
KEPT_PROMPTS = 16


class LiveFilm:
    """A film that is made on a thread of its own, and directed from any other; use as a context manager.

    Leaving the block stops the film after the chunk at work and waits for its file; where the film failed, it raises
    what happened. Directions return a :class:`Direction` with the chunk from which it holds, and raise HeliosError
    where they cannot be followed.

    Attributes:
        path: the finished file, once it is there.
        history: what the next chunk would continue from.
    """

    def __init__(self, director: Director, fps: float, make: Callable[[], tuple[Path, History]]):
        self.path: Path | None = None
        self.history: History | None = None
        self.director = director
        self._fps, self._make = fps, make
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="helios-live")

    # -- directions ----------------------------------------------------------------------------------

    def prompt(self, text: str, chunk: int | None = None, blend: int | None = None) -> Direction:
        """A new prompt from the next chunk on, or from ``chunk`` on, taking over within ``blend`` chunks."""
        return self.direct(Direction("prompt", text=text, chunk=chunk, blend=blend))

    def undo(self) -> Direction:
        """Takes back the last direction that no chunk has used yet."""
        return self.direct(Direction("undo"))

    def roll(self, chunk: int, seed: int | None = None) -> Direction:
        """Discards ``chunk`` and all behind it, and goes on with another seed."""
        return self.direct(Direction("roll", chunk=chunk, seed=seed))

    def anchor(self, picture: str | Path) -> Direction:
        """A picture's file is the anchor from the next chunk on."""
        return self.direct(Direction("anchor", image=str(picture)))

    def pause(self) -> Direction:
        """Waits before the next chunk."""
        return self.direct(Direction("pause"))

    def go_on(self) -> Direction:
        """Ends a pause."""
        return self.direct(Direction("continue"))

    def stop(self) -> Direction:
        """Ends the film after the chunk at work."""
        return self.direct(Direction("stop"))

    def direct(self, direction: Direction) -> Direction:
        """Any direction."""
        return self.director.direct(direction)

    # -- what is known -------------------------------------------------------------------------------

    @property
    def schedule(self) -> str:
        """The prompts as they were directed, as :func:`~helios_core.take.prompts.schedule_from_text` reads them."""
        return schedule_text(self.director.script.schedule)

    @property
    def seed_changes(self) -> str:
        """The seeds of chunks that were rolled again, as ``seed_changes`` of the pipeline takes them."""
        return seed_changes_text(self.director.script.seed_changes)

    def second_of(self, chunk: int) -> float:
        """When ``chunk`` begins, in seconds of film."""
        return self.director.second_of(chunk, self._fps)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the film has ended, at the latest after ``seconds``."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # -- making it -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.path, self.history = self._make()
        except BaseException as error:
            self._error = error
        self.director.end_now()

    def __enter__(self) -> LiveFilm:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with contextlib.suppress(TakeEndedError):
            try:
                self.stop()
            except HeliosError:  # the disk may be what failed
                self.director.stop_now()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error


@dataclass
class LiveChunks:
    """A ``DirectedSource`` over the chunks of a pipeline."""

    chunks: TransformerChunks
    encode: Callable[[str], Tensor]
    anchor: Callable[[str], Tensor]
    progress: OpenProgress
    first: int

    def begin(self, chunk: int, script: Script) -> Tensor | None:
        self.progress.begin(chunk - self.first)
        self.chunks.schedule = script.schedule.around(chunk).encoded(self.encode)
        return self.anchor(script.anchors[chunk][0]) if chunk in script.anchors else None

    def check(self) -> None:
        """Nothing interrupts it but :meth:`LiveFilm.stop`."""

    def sample(self, history: History, seed: int | None) -> tuple[Tensor, History]:
        return self.chunks.sample(history, seed)

    def determined_by(self, history: History) -> Any:
        return self.chunks.determined_by(history)


class LiveObserver:
    """Counts the chunks of a film, and tells of each in a line."""

    def __init__(self, progress: OpenProgress, tell: Callable[[str], None]):
        self.progress, self._tell = progress, tell

    def decoding(self, chunk: Chunk) -> None:
        if chunk.reused:
            self.progress.reuse()

    def decoded(self, chunk: Chunk, _frames: Tensor | None) -> None:
        self.progress.chunk()
        rate = self.progress.rate
        speed = "" if rate is None else f", {rate:.2f} fps"
        self._tell(f"chunk {chunk.index}, {self.progress.film_seconds:.1f} s of film{speed}")

    def on_disk(self, *_: object) -> None:
        """Nothing is shown of it."""

    def writing(self) -> None:
        self._tell("writing the file")


def live_film(
    pipeline: FilmPipeline,
    text: str,
    output: str | Path,
    *,
    max_chunks: int = 0,
    blend: int = 0,
    fps: float = 24,
    crf: int = 18,
    store: str | Path | None = None,
    take: str = "",
    resume: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    **keywords: Any,
) -> LiveFilm:
    """A film that begins with ``text`` and is directed while it is made into ``output``.

    Args:
        text: a prompt, or a schedule as :func:`~helios_core.take.prompts.schedule_from_text` reads it.
        max_chunks: where it ends unless it is stopped before; 0: where it is stopped.
        blend: of prompts that name none.
        fps, crf: of the file.
        store: folder of chunks, ``helios_store`` beside ``output`` where absent.
        take: name in the list of takes, made of ``output``'s where empty.
        resume: goes on with the film that the same arguments began, with all its directions.
        tell: given a line about each finished chunk.
        keywords: others of :meth:`HeliosPipeline.stream`.

    Raises:
        HeliosError: as :meth:`HeliosPipeline.stream`; nothing has begun.
    """
    output = Path(output)
    if not 0 <= max_chunks <= MOST_CHUNKS:
        raise HeliosError(f"max_chunks={max_chunks} must be 0 (until it is stopped) to {MOST_CHUNKS}.")
    schedule = begun_script(text, blend, None, ()).schedule
    width, height = (
        keywords.setdefault(name, size) for name, size in zip(("width", "height"), RELEASED_SIZE, strict=True)
    )
    settings = VideoSettings(width, height, fps, crf=crf)
    frames = (max_chunks or MOST_CHUNKS) * CHUNK_FRAMES
    progress = OpenProgress(pipeline.steps_per_chunk(frames, **_sampling(keywords)), fps, open_end=not max_chunks)
    record = Take(ChunkStore(store or output.parent / FOLDER_NAME), take or name_for(output.stem), {}, resume)
    encode = functools.lru_cache(KEPT_PROMPTS)(pipeline.encode_prompt)
    directors: list[Director] = []

    def directing(film: Film) -> DirectedFilm:
        script = Script(schedule, film.seed, film.seed_changes)
        key, first = film.first_key, film.start.chunk
        director = begun_director(record, script, key, first, first + film.num_chunks, _content)
        directors.append(director)
        assert isinstance(film.source, TransformerChunks)
        source = LiveChunks(film.source, encode, partial(_anchor, pipeline, width, height), progress, first)
        return DirectedFilm(source=source, start=film.start, num_chunks=film.num_chunks, director=director)

    chunks = pipeline.stream(
        prompt_embeds=encode(schedule.rows[0][1]),
        num_frames=frames,
        take=record,
        output_type="latent",
        on_step=lambda _: lambda _: progress.step(),
        directing=directing,
        **keywords,
    )
    (director,) = directors

    def make() -> tuple[Path, History]:
        observer = LiveObserver(progress, tell)
        return write_film(
            pipeline, chunks, record, output, settings, observer, lambda: metadata_of(director.script), True
        )

    return LiveFilm(director, fps, make)


def _sampling(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Of a stream's keywords, those that decide a chunk's steps."""
    names = ("num_inference_steps", "pyramid_num_inference_steps_list", "is_amplify_first_chunk")
    return {name: keywords[name] for name in names if name in keywords}


def _content(picture: str) -> str:
    read_picture("picture", picture)
    return file_fingerprint(picture)


def _anchor(pipeline: FilmPipeline, width: int, height: int, picture: str) -> Tensor:
    return pipeline.encode_anchor(read_picture("picture", picture), width, height)
