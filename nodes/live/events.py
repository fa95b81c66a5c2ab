"""Running takes as pages see them: typed events over core's websocket, and the state that a reload asks for.

Every message is an event ``helios.take`` to all connected pages, whose ``data`` is one of :class:`TakeStarted`,
:class:`ChunkChanged`, :class:`TakeEnded` and, of a directed take, ``TakeDirected`` as JSON, told apart by ``kind``. All
carry ``version`` (of this schema) and ``id`` (of the take). ``GET /helios/takes`` answers with the :class:`TakeState`
of running and recent takes, into which later events fit: a page that joins late loses nothing. Takes of earlier
processes come from the store with the same ids (``library.py``).

Nothing is sent while no page is connected.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...helios_core.take.history import History
from ...helios_core.take.progress import RenderProgress
from ...helios_core.take.seed_changes import SeedChanges
from ...helios_core.take.store import ChunkStore
from ...helios_core.variants import CHUNK_FRAMES
from .origins import film_address, queued_graph, workflow_id
from .prompt_rows import prompt_rows

EVENT, VERSION = "helios.take", 1
# Five a second are as many as people follow; the bar under the node has every step.
STEP_SECONDS = 0.2
RECENT_TAKES = 16


@dataclass(frozen=True)
class ChunkState:
    """One chunk that is no longer waiting.

    Attributes:
        chunk: its index in the video.
        stage, step, total: what is sampled now; step counts from 1 to ``total``, all stages together.
        reused: from the store; None while it is not known.
        thumbnail, video: whether the chunk's routes have a moving picture, or the part to play.
        anti_drift: whether it departed from the film so far, and was noised where later chunks see it.
    """

    chunk: int
    state: Literal["sampling", "decoding", "finished"]
    stage: int | None = None
    step: int | None = None
    total: int | None = None
    reused: bool | None = None
    thumbnail: bool = False
    video: bool = False
    anti_drift: bool = False


@dataclass(frozen=True)
class TakeState:
    """A take at one moment.

    Attributes:
        node, prompt_id: the node that runs it (``3``, in a subgraph ``12:3``) and the queued prompt.
        workflow: id of the workflow that a page queued; None for other clients.
        name: the take's manifest in the store; empty where nothing is stored.
        first_chunk, num_chunks: its chunks; those that ``chunks`` lacks are waiting.
        seed, seed_changes: the seeds, the latter as [first chunk, seed].
        rows: the prompts in force as [first chunk, text], as far as the graph tells.
        status: how it goes; ``message`` is a sentence about what went wrong.
        progress: seconds of finished film, frames made a second, seconds left (None: not known yet).
        film: the finished file, as core's ``/view`` finds it.
        resumable: whether the store keeps the graph that was queued.
        store_only: no film is written: it is there to be looked at, like versions of a chunk.
        live: it is directed while it is made (``directing.py``).
    """

    id: str
    node: str
    prompt_id: str
    workflow: str | None
    name: str
    first_chunk: int
    num_chunks: int
    chunk_frames: int
    film_fps: float
    width: int
    height: int
    seed: int
    seed_changes: SeedChanges
    rows: Sequence[tuple[int, str]]
    status: Literal["running", "finished", "interrupted", "failed"] = "running"
    message: str = ""
    progress: Mapping[str, float | None] = field(default_factory=dict)
    chunks: Sequence[ChunkState] = ()
    film: Mapping[str, str] | None = None
    resumable: bool = False
    store_only: bool = False
    live: bool = False


@dataclass(frozen=True)
class TakeStarted:
    take: TakeState
    id: str
    kind: str = "start"
    version: int = VERSION


@dataclass(frozen=True)
class ChunkChanged:
    id: str
    chunk: ChunkState
    progress: Mapping[str, float | None]
    kind: str = "chunk"
    version: int = VERSION


@dataclass(frozen=True)
class TakeEnded:
    id: str
    status: str
    message: str
    progress: Mapping[str, float | None]
    film: Mapping[str, str] | None = None
    kind: str = "end"
    version: int = VERSION


def watched() -> bool:
    """Whether any page or client listens."""
    return bool(PromptServer.instance.sockets)


class TakeFeed:
    """Tells pages about one take; use as a context manager around the render.

    Args:
        progress: counted by the render; its numbers go out with every event.
        name: of the take's manifest, empty without one.
        hidden: the node's hidden inputs, for the texts of its prompts and the workflow's id.
        store: where the segments lie that :meth:`finished` names.
        store_only: as in :class:`TakeState`.
        rows: the prompts, where the graph does not tell them.
    """

    def __init__(
        self,
        progress: RenderProgress,
        history: History,
        seed: int,
        seed_changes: SeedChanges = (),
        name: str = "",
        hidden: Any = None,
        store: ChunkStore | None = None,
        store_only: bool = False,
        rows: Sequence[tuple[int, str]] | None = None,
    ):
        context = get_executing_context()
        node = getattr(context, "node_id", None) or ""
        self.progress, self.store, self.first_chunk = progress, store, history.chunk
        self.discarded: set[tuple[int, str]] = set()  # segments of chunks that were made again
        self._chunks: dict[int, ChunkState] = {}
        self._thumbnails: dict[int, bytes] = {}
        self._segments: dict[int, str] = {}
        self._departed: set[int] = set()
        self._lock = threading.Lock()  # the video's thread reports here too
        self._next_step = 0.0
        self._queued = queued_graph(hidden)
        self._state = TakeState(
            id=uuid.uuid4().hex,
            node=node,
            prompt_id=getattr(context, "prompt_id", None) or "",
            workflow=workflow_id(getattr(hidden, "extra_pnginfo", None)),
            name=name,
            first_chunk=history.chunk,
            num_chunks=len(progress.steps_per_chunk),
            chunk_frames=CHUNK_FRAMES,
            film_fps=progress.fps,
            width=history.width,
            height=history.height,
            seed=seed,
            seed_changes=seed_changes,
            rows=prompt_rows(getattr(hidden, "prompt", None) or {}, node) if rows is None else rows,
            progress=progress.numbers(),
            resumable=bool(name) and self._queued is not None,
            store_only=store_only,
        )

    @property
    def id(self) -> str:
        return self._state.id

    @property
    def name(self) -> str:
        return self._state.name

    @property
    def running(self) -> bool:
        return self._state.status == "running"

    @property
    def fps(self) -> float:
        return self.progress.fps

    def remembered(self) -> dict[str, Any]:
        """What the take's manifest keeps for pages of later processes; see ``library.py``."""
        state, named = self._state, self._queued is not None
        kept = {"id": state.id, "node": state.node, "workflow_id": state.workflow, "first_chunk": state.first_chunk}
        texts = {"rows": list(state.rows), "queued": self._queued} if named else {}
        return {**kept, "fps": state.film_fps, "store_only": state.store_only, **texts}

    def state(self) -> dict[str, Any]:
        """The whole :class:`TakeState` as JSON."""
        with self._lock:
            return asdict(replace(self._state, chunks=tuple(self._chunks.values())))

    # -- what the routes serve -----------------------------------------------------------------------

    def queued(self) -> dict[str, Any] | None:
        """``{"prompt", "workflow"}`` as it was queued; None where metadata is not to be written."""
        return self._queued

    def segment(self, chunk: int) -> bytes | None:
        """The chunk's encoded video, while the store has it."""
        key = self._segments.get(chunk)
        return None if key is None or self.store is None else self.store.get_segment(key)

    def segment_file(self, chunk: int) -> Path | None:
        """Where that video lies, while the store has it whole."""
        return None if self.segment(chunk) is None else self.store.segment_file(self._segments[chunk])

    def segments(self) -> dict[int, str]:
        """The keys of the chunks' encoded videos."""
        with self._lock:
            return dict(self._segments)

    def thumbnail(self, chunk: int) -> bytes | None:
        """The moving picture that was made for the chunk, where there is no segment."""
        return self._thumbnails.get(chunk)

    # -- what the render tells -----------------------------------------------------------------------

    def sampling(self, chunk: int, stage: int, step: int, total: int) -> None:
        """A step is done; told a few times a second at most, and at once for a chunk's first."""
        now = time.monotonic()
        if chunk in self._chunks and now < self._next_step:
            return
        self._next_step = now + STEP_SECONDS
        self._change(ChunkState(chunk, "sampling", stage, step, total, reused=False))

    def decoding(self, chunk: int, reused: bool) -> None:
        """The chunk's latents are there."""
        self._change(ChunkState(chunk, "decoding", reused=reused))

    def departed(self, chunk: int) -> None:
        """Anti-drift stepped in after the chunk; told with its next state."""
        self._departed.add(chunk)

    def finished(self, chunk: int, reused: bool, thumbnail: bytes | None = None, segment: str | None = None) -> None:
        """The chunk is done; ``segment`` is the key of its encoded video, ``thumbnail`` an animated WebP."""
        if thumbnail is not None:
            self._thumbnails[chunk] = thumbnail
        if segment is not None:
            with self._lock:
                self._segments[chunk] = segment
        shown = thumbnail is not None or segment is not None
        self._change(ChunkState(chunk, "finished", reused=reused, thumbnail=shown, video=segment is not None))

    def published(self, path: Path) -> None:
        """The film has its name."""
        with self._lock:
            self._state = replace(self._state, film=film_address(path))

    def _change(self, chunk: ChunkState) -> None:
        chunk = replace(chunk, anti_drift=chunk.chunk in self._departed)
        with self._lock:
            self._chunks[chunk.chunk] = chunk
            self._state = replace(self._state, progress=self.progress.numbers())
        self._send(ChunkChanged(self.id, chunk, self._state.progress))

    def __enter__(self) -> TakeFeed:
        _feeds.add(self)
        self._send(TakeStarted(self._state, self.id))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        status, message = "finished", ""
        if error is not None:
            interrupted = not isinstance(error, Exception)
            status = "interrupted" if interrupted else "failed"
            message = "" if interrupted else str(error).strip() or type(error).__name__
        with self._lock:
            self._state = replace(self._state, status=status, message=message, progress=self.progress.numbers())
        self._send(TakeEnded(self.id, status, message, self._state.progress, self._state.film))

    def _send(self, event: Any) -> None:
        if watched():
            PromptServer.instance.send_sync(EVENT, asdict(event))


class _Feeds:
    """Running takes, and the last that ended."""

    def __init__(self) -> None:
        self._feeds: OrderedDict[str, TakeFeed] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, feed: TakeFeed) -> None:
        with self._lock:
            self._feeds[feed.id] = feed
            ended = [known.id for known in self._feeds.values() if not known.running]
            for known in ended[: max(0, len(self._feeds) - RECENT_TAKES)]:
                del self._feeds[known]

    def get(self, identifier: str) -> TakeFeed | None:
        return self._feeds.get(identifier)

    def is_running(self, name: str) -> bool:
        """Whether a take of this name is being rendered here."""
        return any(feed.running for feed in self._named(name))

    def forget(self, name: str) -> None:
        """Drops the ended takes of a name whose chunks were deleted."""
        with self._lock:
            for feed in self._named(name):
                if not feed.running:
                    del self._feeds[feed.id]

    def _named(self, name: str) -> list[TakeFeed]:
        return [feed for feed in self._feeds.values() if feed.name == name]

    def states(self) -> list[dict[str, Any]]:
        """Oldest first."""
        with self._lock:
            feeds = list(self._feeds.values())
        return [feed.state() for feed in feeds]


_feeds = _Feeds()


def feeds() -> _Feeds:
    """The takes of this process."""
    return _feeds
