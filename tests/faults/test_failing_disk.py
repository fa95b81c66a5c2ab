"""A full disk, or one that only reads, at every access that changes something."""

import errno
import os
import shutil
import subprocess
import sys

import helios_faults_disk as disk
import helios_faults_film as film
import pytest
import torch

from helios_core.errors import HeliosError
from helios_core.take.store import FOLDER_NAME, PART_SUFFIX
from helios_core.video.reader import read_video

EVERY = 4


@pytest.fixture(scope="module")
def accesses(tmp_path_factory) -> int:
    with disk.Failing(errno.ENOSPC).active() as counted:
        film.render(tmp_path_factory.mktemp("counted"))
    return counted.count


def fail_at(folder, undisturbed, first: int, times: float) -> bool:
    """Whether the film failed; it must with a sentence, and go on as if nothing had been."""
    notes: list[str] = []
    failed = False
    try:
        with disk.Failing(errno.ENOSPC, first, times).active():
            film.render(folder, notes.append)
    except HeliosError as error:
        failed = True
        assert "No space left on device" in str(error) and "finished chunks are kept" in str(error)
    shown = len(film.numbers(notes, "shown"))
    if failed and shown and not (folder / film.FILM).exists():
        frames = len(read_video(folder / film.PARTIAL))
        assert frames >= 33 * shown and frames % 33 == 0, "the growing video has whole chunks alone"
    path, latents = film.render(folder, notes.append)
    assert path.read_bytes() == undisturbed[0] and torch.equal(latents, undisturbed[1])
    film.check_sampled_once(notes)
    left = [file.name for file in folder.rglob("*") if file.name.endswith((PART_SUFFIX, ".part.mp4"))]
    assert not left
    return failed


def full_at(folder, undisturbed, numbers) -> int:
    failures = 0
    for number in numbers:
        for name, times in (("once", 1), ("from then on", float("inf"))):
            one = folder / f"{number} {name}"
            one.mkdir()
            failures += fail_at(one, undisturbed, number, times)
            shutil.rmtree(one)
    return failures


def test_a_disk_that_fills_up(tmp_path, undisturbed, accesses):
    numbers = range(1, accesses + 1, EVERY)
    assert full_at(tmp_path, undisturbed, numbers) > len(numbers)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_every_access(tmp_path, undisturbed, accesses):
    assert full_at(tmp_path, undisturbed, range(1, accesses + 1)) > accesses


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of file sizes")
def test_a_disk_that_fills_up_under_ffmpeg(tmp_path, undisturbed):
    """FFmpeg writes the finished file itself; here the system refuses what is beyond a size."""
    film.render(tmp_path)
    (tmp_path / film.FILM).unlink()
    program = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import film\n"
        "from helios_core.take import video\n"
        "finish = video.finish_video\n"
        "def limited(*arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "    finish(*arguments)\n"
        "video.finish_video = limited\n"
        "film.render(Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, os.path.dirname(film.__file__), str(tmp_path)]  # noqa: PTH120
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert "HeliosError" in last and "cannot be written (File too large)" in last
    assert not (tmp_path / film.FILM).exists() and len(read_video(tmp_path / film.PARTIAL)) == 33 * film.CHUNKS
    assert film.render(tmp_path)[0].read_bytes() == undisturbed[0]


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_disk_that_only_reads_is_refused_before_anything_is_sampled(tmp_path, begun):
    notes: list[str] = []
    if begun:
        film.render(tmp_path, chunks=1)
    with (
        disk.Failing(errno.EROFS, 1).active(),
        pytest.raises(HeliosError, match=r"chunk store .* cannot be written .Read-only file system"),
    ):
        film.render(tmp_path, notes.append)
    assert not notes


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_refused_before_anything_is_sampled(tmp_path):
    notes: list[str] = []
    (tmp_path / FOLDER_NAME).mkdir(mode=0o555)
    with pytest.raises(HeliosError, match=r"cannot be written .Permission denied"):
        film.render(tmp_path, notes.append)
    assert not notes
