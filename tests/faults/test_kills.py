"""SIGKILL at random moments: the same film in the end, and no chunk that was kept is sampled twice."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import helios_faults_film as film
import pytest
import torch

from helios_core.video.reader import read_video

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

KILLS, MANY_KILLS = 12, 100


class Films:
    """Renders films in processes that can be killed."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, film.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def run(self, folder: Path, seconds: float | None = None) -> int:
        """The exit code of a process that rendered in ``folder`` for so long, or to its end."""
        self._process.stdin.write(f"{folder}\n".encode())
        child = int(self._process.stdout.readline())
        if seconds is not None and not select.select([self._process.stdout], [], [], seconds)[0]:
            with contextlib.suppress(ProcessLookupError):  # it ended in between
                os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture
def films():
    films = Films()
    yield films
    films.close()


def usual_seconds(films: Films, folder: Path) -> float:
    """How long an undisturbed film takes here; the first one also warms up."""
    for name in ("first", "second"):
        (folder / name).mkdir()
        begun = time.monotonic()
        assert films.run(folder / name) == 0
    return time.monotonic() - begun


def kill_at_random(films: Films, folder: Path, undisturbed, kills: int, seed: int) -> None:
    """Renders film after film, each killed again and again until it is done."""
    rng, number, done, usual = random.Random(seed), 0, 0, usual_seconds(films, folder)
    expected = read_video(folder / "first" / film.FILM)
    while done < kills:
        one = folder / str(number)
        one.mkdir(exist_ok=True)
        code = films.run(one, rng.random() * usual)
        assert code in (0, -signal.SIGKILL)
        done += code != 0
        if code and (one / film.PARTIAL).exists():
            check_growing(one, expected)
        if code == 0 or done == kills:
            assert code == 0 or films.run(one) == 0
            check_finished(one, *undisturbed)
            number += 1


def notes_of(folder: Path) -> list[str]:
    file = folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def check_growing(folder: Path, expected: torch.Tensor) -> None:
    """Whatever was told to be in the growing video, by this process or one before, can be watched."""
    shown = len(set(film.numbers(film.growing(notes_of(folder)), "shown")))
    if shown:
        frames = read_video(folder / film.PARTIAL)
        assert len(frames) >= 33 * shown and torch.equal(frames, expected[: len(frames)])


def check_finished(folder: Path, film_bytes: bytes, latents: torch.Tensor) -> None:
    assert (folder / film.FILM).read_bytes() == film_bytes
    film.check_sampled_once(notes_of(folder))
    assert torch.equal(film.render(folder)[1], latents), "and so is what the store has"


def test_killed_at_random_moments(films, tmp_path, undisturbed):
    kill_at_random(films, tmp_path, undisturbed, KILLS, seed=0)


@pytest.mark.slow
def test_killed_at_a_hundred_random_moments(films, tmp_path, undisturbed):
    kill_at_random(films, tmp_path, undisturbed, MANY_KILLS, seed=1)
