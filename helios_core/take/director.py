"""The director of a film: takes directions from any thread while one other thread makes the chunks.

A direction is settled (which chunk, which seed), kept, and only then in force; all of it under one lock, so that no
chunk begins in between. The thread that makes the film asks :meth:`Director.begin` before every chunk.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import HeliosError
from ..variants import CHUNK_FRAMES
from .directions import SHAPING, VERSION, Direction, Script, checked, directed
from .seed_changes import seed_at, seed_changes_text

# How often a film that waits looks for an interrupt.
POLL_SECONDS = 0.1
SEED_BITS = 32


@dataclass(frozen=True)
class Beginning:
    """A chunk that begins, and the script that is in force for it."""

    chunk: int
    script: Script


class Director:
    """Directs the film that begins with ``begun`` at chunk ``first``.

    Args:
        end: the chunk that the film ends before, at the latest.
        directions: those of an earlier run; ``made`` chunks were finished in it, which are gone through without waiting
            for anybody: directions count from the chunk after them.
        keep: keeps a direction, or raises; it is not in force before this returns. Given it, and the script by it.
        look: given the name of an anchor's picture, its fingerprint; raises HeliosError where there is none.

    Raises:
        HeliosError: an anchor's picture of the earlier run is gone, or another one.
    """

    def __init__(
        self,
        begun: Script,
        first: int,
        end: int,
        directions: Sequence[Direction] = (),
        made: int = 0,
        keep: Callable[[Direction, Script], None] = lambda *_: None,
        look: Callable[[str], str] = lambda _: "",
    ):
        self.begun, self.first, self.end = begun, first, end
        self._directions = list(directions)
        self._script = directed(begun, self._directions)
        self.keep, self._look = keep, look
        for image, content in self._script.anchors.values():
            if look(image) != content:
                raise HeliosError(
                    f"anchor image {image!r} is not the picture that the film was made with; put that one back, or set "
                    "resume off to begin the film anew."
                )
        self._changed = threading.Condition()
        self._cursor, self._made = first, min(first + made, end)
        self._paused = self._stopped = self._ended = False
        self.on_change: Callable[[], None] = lambda: None

    # -- for the thread that makes the film ----------------------------------------------------------

    def begin(self, check: Callable[[], None] = lambda: None) -> Beginning | None:
        """The chunk to make next, as soon as it may begin; None where the film ends. A film has one chunk at least.

        After a roll it is an earlier one than expected: what was made from it on is discarded. ``check`` raises where
        the film is interrupted.
        """
        with self._changed:
            while True:
                check()
                if self._cursor >= self.end or (self._stopped and self._cursor > self.first):
                    self._ended, beginning = True, None
                    break
                if not self._paused or self._stopped:
                    beginning = Beginning(self._cursor, self._script)
                    self._cursor += 1
                    self._made = max(self._made, self._cursor)
                    break
                self._changed.wait(POLL_SECONDS)
        self.on_change()
        return beginning

    def wants(self, chunk: int) -> bool:
        """Whether a chunk that has begun is still part of the film."""
        with self._changed:
            return chunk < self._cursor

    def stop_now(self) -> None:
        """Ends the film after the chunk at work, also where no direction can be kept."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def end_now(self) -> None:
        """Takes no more directions: the film has ended."""
        with self._changed:
            self._ended = True
        self.on_change()

    # -- for everybody -------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        return not self._ended

    @property
    def next_chunk(self) -> int:
        """The first chunk that can still change."""
        return max(self._cursor, self._made)

    @property
    def cursor(self) -> int:
        """The chunk after the film's last one."""
        return self._cursor

    @property
    def script(self) -> Script:
        """The script in force, with what waits for a later chunk."""
        return self._script

    def direct(self, wish: Direction) -> Direction:
        """Takes a direction; returns it as it was settled.

        Raises:
            HeliosError: it cannot be followed, or not be kept; nothing has changed.
        """
        wish = checked(wish)
        if wish.image is not None:
            wish = replace(wish, content=self._look(wish.image))
        with self._changed:
            direction = replace(self._settled(wish), number=len(self._directions) + 1)
            directions = [*self._directions, direction]
            script = directed(self.begun, directions) if direction.do in (*SHAPING, "undo") else self._script
            self.keep(direction, script)
            self._directions, self._script = directions, script
            self._follow(direction)
            self._changed.notify_all()
        self.on_change()
        return direction

    def _settled(self, wish: Direction) -> Direction:
        if self._ended or self._stopped:
            raise TakeEndedError("the film has ended; queue the node again to go on with it.")
        soonest = self.next_chunk
        if wish.do == "prompt":
            chunk = soonest if wish.chunk is None else wish.chunk
            self._check_ahead(chunk)
            blend = self._script.schedule.blend if wish.blend is None else wish.blend
            return replace(wish, chunk=chunk, blend=blend)
        if wish.do == "anchor":
            self._check_ahead(soonest)
        if wish.do == "roll":
            return self._settled_roll(wish)
        if wish.do == "undo":
            waiting = self._waiting()
            if not waiting:
                raise HeliosError("there is nothing to undo: every direction is in a chunk that has begun.")
            return replace(wish, chunk=waiting[-1].chunk, undoes=waiting[-1].number)
        return replace(wish, chunk=soonest)

    def _check_ahead(self, chunk: int) -> None:
        if chunk < self.next_chunk:
            raise HeliosError(
                f"chunk={chunk} has begun already; name chunk {self.next_chunk} or a later one, or roll it again."
            )
        if chunk >= self.end:
            raise HeliosError(f"chunk={chunk} is behind the film's last one, {self.end - 1}; name an earlier one.")

    def _settled_roll(self, wish: Direction) -> Direction:
        assert wish.chunk is not None
        if not self.first <= wish.chunk < self.next_chunk:
            made = f"{self.first} to {self.next_chunk - 1}" if self.next_chunk > self.first else "none yet"
            raise HeliosError(f"chunk={wish.chunk} has not begun, so it cannot be rolled again; begun are {made}.")
        present = seed_at(self._script.seed_changes, wish.chunk, self._script.seed)
        if wish.seed is not None and wish.seed == present:
            raise HeliosError(f"seed={wish.seed} is what chunk {wish.chunk} was made with; give another, or none.")
        seed = wish.seed
        while seed is None or seed == present:
            seed = secrets.randbits(SEED_BITS)
        return replace(wish, seed=seed)

    def _follow(self, direction: Direction) -> None:
        if direction.do == "roll":
            assert direction.chunk is not None
            self._made = direction.chunk
            self._cursor = min(self._cursor, direction.chunk)
        elif direction.do in ("pause", "continue"):
            self._paused = direction.do == "pause"
        elif direction.do == "stop":
            self._stopped = True

    def _waiting(self) -> list[Direction]:
        """The directions that no chunk has used, in the order in which they were given."""
        undone = {direction.undoes for direction in self._directions}
        return [
            direction
            for direction in self._directions
            if direction.do in SHAPING
            and direction.number not in undone
            and direction.chunk is not None
            and direction.chunk >= self.next_chunk
        ]

    def second_of(self, chunk: int, fps: float) -> float:
        """When ``chunk`` begins, in seconds of film at ``fps``."""
        return round((chunk - self.first) * CHUNK_FRAMES / fps, 3)

    def state(self) -> dict[str, Any]:
        """What is in force and what waits, as JSON: see ``GET /helios/takes/{id}/direct``."""
        with self._changed:
            schedule = self._script.schedule
            return {
                "version": VERSION,
                "live": self.live,
                "paused": self._paused,
                "next_chunk": self.next_chunk,
                "rows": [
                    {"chunk": first, "text": text, "blend": schedule.blend_of(first)} for first, text in schedule.rows
                ],
                "pending": [_shown(direction) for direction in self._waiting()],
                "seed_changes": seed_changes_text(self._script.seed_changes),
            }


class TakeEndedError(HeliosError):
    """A direction for a film that takes none any more."""


def _shown(direction: Direction) -> dict[str, Any]:
    text = {} if direction.text is None else {"text": direction.text}
    return {"direction": direction.number, "do": direction.do, "chunk": direction.chunk, **text}
