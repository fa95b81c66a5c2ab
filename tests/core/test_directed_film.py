"""Directing a film while it is made: nothing said is lost or holds twice, and the film can be made again from it."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helios_fuzz_profiles import tries
from hypothesis import given
from hypothesis import strategies as st

from helios_core.errors import HeliosError
from helios_core.take.anchor import with_anchor
from helios_core.take.directed_film import DirectedFilm, directed_before
from helios_core.take.directions import Direction, Script, read_direction, stored_directions
from helios_core.take.director import Director
from helios_core.take.film import Film
from helios_core.take.history import History
from helios_core.take.prompts import PromptSchedule, parse_schedule, schedule_from_text, schedule_text
from helios_core.take.render import render_film
from helios_core.take.seed_changes import parse_seed_changes, seed_at, seed_changes_text
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings

SIZE, SEED, END = 16, 3, 9
BEGUN = Script(schedule_from_text("0: dawn\n4: dusk", 2), SEED, ((6, 60),))


def anchor_of(image: str) -> torch.Tensor:
    return torch.full((1, 16, 1, SIZE // 8, SIZE // 8), float(len(image)))


@dataclass
class StubChunks:
    """Chunks that tell what they were made of: seconds of sampling become a few numbers."""

    during: Any = None  # called with the chunk that is being made
    when_waiting: Any = None
    prompt: str = ""
    sampled: list[int] = field(default_factory=list)
    anchored: dict[int, tuple[str, str]] = field(default_factory=dict)

    def say(self, schedule: PromptSchedule[str], chunk: int) -> None:
        self.prompt = schedule.at(chunk, lambda old, new, weight: f"{old}+{new}*{weight:.3f}")

    def begin(self, chunk: int, script: Script) -> torch.Tensor | None:
        self.say(script.schedule, chunk)
        return anchor_of(script.anchors[chunk][0]) if chunk in script.anchors else None

    def check(self) -> None:
        if self.when_waiting is not None:
            self.when_waiting()

    def sample(self, history: History, seed: int | None) -> tuple[torch.Tensor, History]:
        self.sampled.append(history.chunk)
        generator = history.seeded(torch.Generator(), seed)
        # Numbers of a fixed place: a mean depends on how its tensor lies in memory.
        latents = torch.randn(history.chunk_shape, generator=generator) + history.latents[0, 0, -1, 0, 0]
        latents += sum(self.prompt.encode()) + (0 if history.anchor is None else history.anchor[0, 0, 0, 0, 0])
        if self.during is not None:
            self.during(history.chunk)
        return latents, history.after(latents, generator, seed)

    def determined_by(self, _: History) -> dict[str, Any]:
        return {"positive": self.prompt}


class Scheduled(StubChunks):
    """The same chunks from an ordinary schedule, as Render Video makes them."""

    def __init__(self, schedule: PromptSchedule[str]):
        super().__init__()
        self.schedule = schedule

    def sample(self, history: History, seed: int | None) -> tuple[torch.Tensor, History]:
        self.say(self.schedule, history.chunk)
        return super().sample(history, seed)

    def determined_by(self, history: History) -> dict[str, Any]:
        self.say(self.schedule, history.chunk)
        return super().determined_by(history)


class Shoot:
    """A film that is being made, and what was said to it."""

    def __init__(self, folder: Path, name: str = "film", directions: tuple[Direction, ...] = (), end: int = END):
        self.store, self.said, self.shown = ChunkStore(folder), [], []
        self.take = Take(self.store, name, {})
        self.take.begin_directing([direction.kept() for direction in directions])
        self.director = Director(BEGUN, 0, end, directions, keep=self.keep, look=lambda image: f"of {image}")
        self.source = StubChunks()
        start = History.empty(SIZE, SIZE)
        self.film = DirectedFilm(source=self.source, start=start, num_chunks=end, director=self.director)

    def keep(self, direction: Direction, _: Script) -> None:
        self.take.direct(direction.kept(), direction.chunk if direction.do == "roll" else None)

    def direct(self, direction: Direction) -> Direction | None:
        """None where it was refused."""
        with contextlib.suppress(HeliosError):
            said = self.director.direct(direction)
            self.said.append(said)
            return said
        return None

    def made(self) -> list[torch.Tensor]:
        """The latents of the finished film."""
        return [self.store.get_chunk(key).latents for key in self.take._keys()]

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.store.takes / f"{self.take.name}.json").read_text(encoding="utf-8"))


texts = st.sampled_from(["rain", "a fox", "two boats", "snow, 7: not a row"])
directions = st.one_of(
    st.builds(Direction, st.just("prompt"), text=texts, blend=st.none() | st.integers(0, 4)),
    st.builds(Direction, st.just("prompt"), text=texts, chunk=st.integers(0, END + 1)),
    st.builds(Direction, st.just("roll"), chunk=st.integers(0, END), seed=st.none() | st.integers(0, 5)),
    st.builds(Direction, st.just("anchor"), image=st.sampled_from(["a.png", "bb.png"])),
    st.sampled_from([Direction("undo"), Direction("pause"), Direction("continue"), Direction("stop")]),
)


def expected(said: list[Direction], chunk: int) -> tuple[str, int | None, str | None]:
    """(prompt that begins to hold last, seed, anchor's picture at this chunk) by what was said, told apart naively."""
    undone = {direction.undoes for direction in said}
    valid = [direction for direction in said if direction.number not in undone]
    rows, seeds, anchors = dict(BEGUN.schedule.rows), dict(BEGUN.seed_changes), {}
    for direction in valid:
        if direction.do == "prompt":
            rows[direction.chunk] = direction.text
        elif direction.do == "roll":
            seeds = {first: seed for first, seed in seeds.items() if first < direction.chunk}
            seeds[direction.chunk] = direction.seed
        elif direction.do == "anchor":
            anchors[direction.chunk] = direction.image
    row = max(first for first in rows if first <= chunk)
    changes = [first for first in seeds if first <= chunk]
    return rows[row], seeds[max(changes)] if changes else SEED, anchors.get(chunk)


def check(shoot: Shoot, folder: Path) -> None:
    """What was said is what is kept and what was made; and it makes the same film again, in two ways."""
    kept = stored_directions(shoot.manifest()["directions"]) if shoot.said else ()
    assert list(kept) == sorted(shoot.said, key=lambda direction: direction.number)
    assert [direction.number for direction in kept] == list(range(1, len(kept) + 1))
    script, made = shoot.director.script, shoot.made()
    for chunk in range(len(made)):
        prompt, seed, image = expected(list(kept), chunk)
        row = script.schedule.rows[script.schedule.row_at(chunk)]
        assert (row[1], seed_at(script.seed_changes, chunk, SEED)) == (prompt, seed)
        assert script.anchors.get(chunk, (None,))[0] == image
    if not made:
        return
    # From the manifest alone, in an empty store.
    again = Shoot(folder / "again", directions=kept, end=len(made))
    list(again.film.chunks(again.take))
    assert all(map(torch.equal, again.made(), made)) and len(again.made()) == len(made)
    check_rendered(shoot, made)


def check_rendered(shoot: Shoot, made: list[torch.Tensor]) -> None:
    """As Render Video makes the film from its texts; a new anchor is a film that goes on from the one before."""
    script, history = shoot.director.script, History.empty(SIZE, SIZE)
    schedule = schedule_from_text(schedule_text(script.schedule), 99)
    changes = parse_seed_changes(seed_changes_text(script.seed_changes))
    begins = sorted({0, len(made)} | {chunk for chunk in script.anchors if chunk < len(made)})
    for first, end in itertools.pairwise(begins):
        if first in script.anchors:
            history = with_anchor(history, anchor_of(script.anchors[first][0]))
        film = Film(Scheduled(schedule), history, end - first, SEED, changes)
        for chunk in film.chunks(Take(shoot.store, "rendered", {})):
            assert chunk.reused and torch.equal(chunk.latents, made[chunk.index])
            history = chunk.history


moments = st.tuples(st.sampled_from(["between", "during"]), st.integers(0, 2), directions)


@given(st.lists(moments, max_size=12))
@tries(in_ci=30)
def test_directions_at_any_moment(tmp_path_factory, program):
    """One thread: what is said comes between two chunks, or while one is made, some chunks after what was said before,
    or while the film waits."""
    folder, left = tmp_path_factory.mktemp("shoot"), list(program)
    shoot = Shoot(folder)

    def say(moment: str | None) -> None:
        while left and moment in (None, left[0][0]):
            at, chunks, direction = left[0]
            if moment is not None and chunks:
                left[0] = (at, chunks - 1, direction)
                return
            del left[0]
            shoot.direct(direction)
            if moment is None:
                return

    def waiting() -> None:
        if shoot.director.state()["paused"]:
            say(None)
            if not left:
                shoot.direct(Direction("continue"))

    shoot.source.during = lambda _: say("during")
    shoot.source.when_waiting = waiting
    for _ in shoot.film.chunks(shoot.take):
        say("between")
    check(shoot, folder)


class Changes:
    """Counts what a director tells of: chunks that began, and directions of anybody."""

    def __init__(self, director: Director):
        self._director, self._count, self._counted = director, 0, threading.Condition()
        director.on_change = self._tell

    def _tell(self) -> None:
        with self._counted:
            self._count += 1
            self._counted.notify_all()

    def wait(self, more: int) -> None:
        """Until ``more`` have come; not where none may come, in a film that is paused or has ended."""
        with self._counted:
            until = self._count + more
            self._counted.wait_for(lambda: self._count >= until or not self._runs(), 30)

    def _runs(self) -> bool:
        state = self._director.state()
        return state["live"] and not state["paused"]


programs = st.lists(st.tuples(st.integers(0, 4), directions), max_size=8)


@given(st.tuples(programs, programs), st.integers(0, 2))
@tries(in_ci=15)
def test_two_directors_at_once(tmp_path_factory, both, milliseconds):
    """Three threads without any order between them: a direction comes some changes of the film after its director's
    last one, while a chunk of ``milliseconds`` is made, begins or waits."""
    folder = tmp_path_factory.mktemp("shoot")
    shoot = Shoot(folder)
    changes, heard = Changes(shoot.director), ([], [])
    shoot.source.during = lambda _: time.sleep(milliseconds / 1000)

    def direct(program: list[tuple[int, Direction]], settled: list[Direction]) -> None:
        for more, direction in (*program, (0, Direction("continue"))):
            changes.wait(more)
            said = shoot.direct(direction)
            settled += [] if said is None else [said]

    threads = [threading.Thread(target=direct, args=pair, daemon=True) for pair in zip(both, heard, strict=True)]
    threads.append(threading.Thread(target=lambda: list(shoot.film.chunks(shoot.take)), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a deadlock"
    for settled in heard:
        assert settled == sorted(settled, key=lambda direction: direction.number), "each is heard in its own order"
    check(shoot, folder)


def shot(folder: Path, *said: tuple[int, Direction], end: int = END) -> Shoot:
    """A film to which each direction was said while the chunk before it was made."""
    shoot, left = Shoot(folder, end=end), list(said)

    def say(chunk: int) -> None:
        while left and left[0][0] == chunk:
            assert shoot.direct(left.pop(0)[1])

    shoot.source.during = say
    shoot.shown = [chunk.index for chunk in shoot.film.chunks(shoot.take)]
    assert not left
    return shoot


def test_a_prompt_holds_from_the_next_chunk_on(tmp_path):
    shoot = shot(tmp_path, (1, Direction("prompt", text="  a\nfox ", blend=0)))
    assert shoot.said[0] == Direction("prompt", 1, 2, "a fox", 0)
    rows = ((0, "dawn"), (2, "a fox"), (4, "dusk"))
    assert shoot.director.script.schedule.rows == rows
    assert schedule_text(shoot.director.script.schedule) == "0: dawn\n2~0: a fox\n4~2: dusk"


def test_a_rolled_chunk_is_made_again_with_all_behind_it(tmp_path):
    shoot = shot(tmp_path, (3, Direction("roll", chunk=2)), end=5)
    assert shoot.source.sampled == [0, 1, 2, 3, 2, 3, 4]
    assert shoot.shown == [0, 1, 2, 2, 3, 4], "what was discarded while it was made is not decoded"
    undone = shot(tmp_path / "other", (3, Direction("roll", chunk=2)), (3, Direction("undo")), end=5)
    assert undone.source.sampled == [0, 1, 2, 3, 4], "what the store has is not made again"
    assert all(map(torch.equal, undone.made()[:2], shoot.made()[:2]))
    assert not torch.equal(undone.made()[2], shoot.made()[2])


def test_a_direction_that_cannot_be_kept_changes_nothing(tmp_path, monkeypatch):
    shoot = Shoot(tmp_path)
    shoot.director.direct(Direction("prompt", text="rain", chunk=1))
    before = shoot.director.state()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(HeliosError, match="free space"):
        patch.setattr("helios_core.take.store.write_atomically", full)
        shoot.director.direct(Direction("prompt", text="snow", chunk=2))
    assert shoot.director.state() == before
    shoot.director.direct(Direction("undo"))
    assert [entry["do"] for entry in shoot.manifest()["directions"]] == ["prompt", "undo"]


def test_a_killed_film_goes_on_where_it_was(tmp_path):
    first = shot(tmp_path, (1, Direction("prompt", text="rain")), (3, Direction("pause")), (3, Direction("continue")))
    kept = stored_directions(first.manifest()["directions"])
    director = Director(BEGUN, 0, END, kept, made=5)
    assert director.next_chunk == 5 and not director.state()["paused"]
    assert director.direct(Direction("prompt", text="snow")).chunk == 5
    assert [director.begin().chunk for _ in range(7)] == list(range(7)) and director.next_chunk == 7


@pytest.mark.parametrize(
    ("direction", "sentence"),
    [
        (Direction("prompt", text="rain", chunk=1), "chunk=1 has begun already; name chunk 2"),
        (Direction("prompt", text="rain", chunk=END), "behind the film's last one, 8"),
        (Direction("prompt", text=" "), "text is empty"),
        (Direction("prompt", text="x" * 1_000_000), "has 1000000 letters"),
        (Direction("prompt", text="a / 7: b"), "would begin another row"),
        (Direction("prompt", text="\ud800"), "not Unicode"),
        (Direction("prompt", text="rain", blend=-1), "blend=-1"),
        (Direction("roll", chunk=2), "has not begun, so it cannot be rolled again; begun are 0 to 1"),
        (Direction("roll", chunk=1, seed=SEED), "seed=3 is what chunk 1 was made with"),
        (Direction("undo"), "nothing to undo"),
        (Direction("dance"), "no direction; use one of prompt"),
        (Direction("pause", chunk=2), "pause has no field 'chunk'; it takes nothing else"),
    ],
)
def test_what_cannot_be_followed_is_refused(direction, sentence):
    director = Director(BEGUN, 0, END)
    for _ in range(2):
        director.begin()
    before = director.state()
    with pytest.raises(HeliosError, match=sentence):
        director.direct(direction)
    assert director.state() == before


def test_an_ended_film_takes_no_directions():
    director = Director(BEGUN, 0, END)
    director.direct(Direction("pause"))
    director.direct(Direction("stop"))
    assert director.begin().chunk == 0, "a film has a chunk"
    assert director.begin() is None
    with pytest.raises(HeliosError, match="has ended"):
        director.direct(Direction("pause"))


@pytest.mark.parametrize(
    "body",
    [None, [], {"do": "pause"}, {"version": 2, "do": "pause"}, {"version": 1}, {"version": 1, "do": ["pause"]},
     {"version": 1, "do": "prompt"}, {"version": 1, "do": "prompt", "text": 7}, {"version": 1, "do": "roll"},
     {"version": 1, "do": "roll", "chunk": True}, {"version": 1, "do": "roll", "chunk": 1, "seed": 2**64},
     {"version": 1, "do": "pause", "extra": 1}, {"version": 1, "do": "anchor", "image": ""}],
)  # fmt: skip
def test_bodies_that_are_no_directions(body):
    with pytest.raises(HeliosError):
        read_direction(body)


@pytest.mark.parametrize(
    "entries",
    [[7], [{"do": "prompt"}], [{"do": "prompt", "number": 1, "chunk": 2, "text": 5}], [{"do": "x", "number": 1}],
     [{"do": "pause", "number": 2, "chunk": 0}], [{"do": "pause", "number": 1, "chunk": 0, "more": 1}],
     [{"do": "anchor", "number": 1, "chunk": 0, "image": "a.png", "content": 3}]],
)  # fmt: skip
def test_edited_directions_are_refused(entries):
    with pytest.raises(HeliosError, match="direction 1 of the take cannot be read"):
        stored_directions(entries)


@given(st.lists(st.tuples(st.text(), st.none() | st.integers(0, 12)), min_size=1, max_size=4))
@tries(in_ci=50)
def test_a_schedule_as_text_is_the_same_schedule(prompts):
    director = Director(Script(PromptSchedule(((0, "dawn"),), 3)), 0, 100)
    for chunk, (text, blend) in enumerate(prompts):
        with contextlib.suppress(HeliosError):
            director.direct(Direction("prompt", text=text, chunk=chunk * 2, blend=blend))
    schedule = director.script.schedule
    text = schedule_text(schedule)
    again = schedule_from_text(text, 7)
    assert again.rows == schedule.rows == tuple(parse_schedule(text))
    assert [again.blend_of(first) for first, _ in again.rows[1:]] == [
        schedule.blend_of(first) for first, _ in schedule.rows[1:]
    ]


class Watcher:
    """An observer that remembers."""

    def decoding(self, chunk: Any) -> None: ...

    def decoded(self, chunk: Any, frames: Any) -> None: ...

    def on_disk(self, index: int, reused: bool, segment: str) -> None: ...

    def writing(self) -> None: ...


def frames_of(latents: torch.Tensor) -> torch.Tensor:
    return (latents.mean() % 256).to(torch.uint8).expand(33, SIZE, SIZE, 3).contiguous()


def filmed(shoot: Shoot, folder: Path) -> tuple[Path, History]:
    return render_film(
        shoot.film.chunks(shoot.take),
        shoot.take,
        folder / "film.partial.mp4",
        VideoSettings(SIZE, SIZE, 24),
        "",
        frames_of,
        lambda finished: finished.replace(folder / "film.mp4"),
        Watcher(),
        metadata=lambda: {"schedule": schedule_text(shoot.director.script.schedule)},
        finish_always=True,
    )


@pytest.mark.parametrize("last", ["stop", "error"])
def test_the_film_holds_what_is_left_after_rolls(tmp_path, last):
    """Where a roll, a stop or an error came last, too."""
    shoot = Shoot(tmp_path, end=6)
    said = {3: Direction("roll", chunk=1, seed=8), 5: Direction("roll", chunk=4, seed=9)}

    def say(chunk: int) -> None:
        if chunk in said:
            shoot.direct(said.pop(chunk))
            if not said and last == "stop":
                shoot.direct(Direction("stop"))
            if not said and last == "error":
                raise HeliosError("the sampler failed.")

    shoot.source.during = say
    if last == "error":
        with pytest.raises(HeliosError, match="sampler failed"):
            filmed(shoot, tmp_path)
    else:
        _, history = filmed(shoot, tmp_path)
        assert history.chunk == 4
    assert shoot.source.sampled == [0, 1, 2, 3, 1, 2, 3, 4, 5]
    made, frames = shoot.made(), read_video(tmp_path / "film.mp4")
    assert len(made) == 4 and len(frames) == 4 * 33
    for latents, shown in zip(made, frames.split(33), strict=True):
        assert (shown.float() - frames_of(latents).float()).abs().mean() < 4
    manifest = shoot.manifest()
    assert manifest["status"] == ("finished" if last == "stop" else "failed: the sampler failed.")
    assert manifest["video"] == str(tmp_path / "film.mp4") and not list(tmp_path.glob("*.partial.mp4"))
    assert [entry["in_video"] for entry in manifest["chunks"]] == [True] * 4


def test_a_resume_that_was_stopped_early_knows_how_far_the_film_was(tmp_path):
    store = ChunkStore(tmp_path / "store")
    take = Take(store, "film", {})
    take.begin_directing([], begun="key", made=20)
    take.direct(None)
    assert directed_before(store, "film", "key", 0) == ((), 20)
    take.direct(None, 7, made=7)
    assert directed_before(store, "film", "key", 0) == ((), 7), "from there on it was rolled again"
