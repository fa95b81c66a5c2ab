"""A power cut at every moment: what was not synchronised is gone, or is zeros, or is there by chance."""

import random
import sys
import tempfile
from pathlib import Path

import helios_faults_disk as disk
import helios_faults_film as film
import pytest
import torch

from helios_core.video.reader import read_video

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot synchronise folders")

EVERY = 5


def record(folder: Path, lying: bool = False) -> list[disk.Moment]:
    """All moments of a film that is made on such a disk."""
    (folder / "film").mkdir()
    (folder / "attic").mkdir()
    recorder = disk.Recorder(folder / "film", folder / "attic", lying)
    with recorder.recording():
        film.render(folder / "film", recorder.notes.append)
        recorder.note("the end")
    assert film.numbers(recorder.notes, "kept") == list(range(film.CHUNKS))
    return recorder.moments


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[disk.Moment]:
    return record(tmp_path_factory.mktemp("recorded"))


def check_goes_on(moment: disk.Moment, kind: str, undisturbed, seed: int) -> None:
    film_bytes, latents = undisturbed
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "found"
        moment.survives(kind, folder, random.Random(seed))
        notes = list(moment.notes)
        shown = len(film.numbers(notes, "shown"))
        if kind == disk.NOTHING and shown and not (folder / film.FILM).exists():
            assert len(read_video(folder / film.PARTIAL)) >= 33 * shown, moment.at
        path, found = film.render(folder, notes.append)
        assert path.read_bytes() == film_bytes and torch.equal(found, latents), moment.at
        film.check_sampled_once(notes)


def cut_at(moments: list[disk.Moment], undisturbed, seed: int) -> None:
    for number, moment in enumerate(moments):
        for kind in disk.KINDS:
            check_goes_on(moment, kind, undisturbed, seed + number)


def test_a_power_cut_loses_no_finished_chunk(recorded, undisturbed):
    cut_at([*recorded[::EVERY], recorded[-1]], undisturbed, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_every_moment(recorded, undisturbed, seed):
    cut_at(recorded, undisturbed, 1000 * seed)


@pytest.mark.parametrize("kind", disk.KINDS)
def test_a_finished_film_survives(recorded, undisturbed, tmp_path, kind):
    recorded[-1].survives(kind, tmp_path / "found", random.Random(0))
    assert (tmp_path / "found" / film.FILM).read_bytes() == undisturbed[0]


def test_a_disk_that_lies_damages_what_is_found_by_its_checksum(undisturbed, tmp_path, caplog):
    moment = record(tmp_path, lying=True)[-1]
    moment.survives(disk.NAMES, tmp_path / "found", random.Random(0))
    notes: list[str] = []
    path, latents = film.render(tmp_path / "found", notes.append)
    assert path.read_bytes() == undisturbed[0] and torch.equal(latents, undisturbed[1])
    assert film.numbers(notes, "sampled") == list(range(film.CHUNKS))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for kind in ("chunk.safetensors", "segment.mp4"):
        assert sum(f".{kind} is damaged" in text for text in told) == film.CHUNKS
