"""A clock that is set back or ahead while a film is made: nothing of it is evicted, and the limit holds again later.

Setting the clock ahead by an hour is the same as all files becoming an hour older, which is what is done here.
"""

import contextlib
import os
import threading

import helios_faults_film as film
import pytest
import torch

from helios_core.take.store import FOLDER_NAME, GRACE_SECONDS, PART_SUFFIX, ChunkStore

DAY = 24 * 3600.0


def set_clock(store: ChunkStore, ahead: float) -> None:
    for path, state in store.files():
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (state.st_atime, state.st_mtime - ahead))


def chunks(store: ChunkStore) -> set[str]:
    return {path.name for path, _ in store.files() if ".chunk." in path.name}


@pytest.mark.parametrize("step", [-DAY, DAY, -3 * GRACE_SECONDS, 3 * GRACE_SECONDS])
def test_a_clock_that_is_set_while_a_film_is_made(tmp_path, undisturbed, step):
    """Every chunk takes longer than files are spared, or less than no time, under a limit that holds nothing."""
    store, notes = ChunkStore(tmp_path / FOLDER_NAME, max_bytes=1), []
    shown = [threading.Event() for _ in range(film.CHUNKS)]

    def note(text: str) -> None:
        notes.append(text)
        kind, chunk = text.split()
        if kind == "shown":
            shown[int(chunk)].set()
        if kind == "sampled":
            # The chunk before is in the video by then, or its segment would be kept while the clock is set.
            assert chunk == "0" or shown[int(chunk) - 1].wait(60)
            set_clock(store, step)

    path, latents = film.render(tmp_path, note, store=store)
    assert path.read_bytes() == undisturbed[0] and torch.equal(latents, undisturbed[1])
    assert len(chunks(store)) == film.CHUNKS
    film.render(tmp_path, note, store=store)
    assert film.numbers(notes, "sampled") == list(range(film.CHUNKS))


def test_files_from_the_future_are_evicted_once_they_are_old(tmp_path):
    store = ChunkStore(tmp_path / FOLDER_NAME)
    film.render(tmp_path, store=store, chunks=2)
    half = store.folder / f"{'0' * 32}{PART_SUFFIX}"
    half.touch()
    set_clock(store, -300 * DAY)
    before, store.max_bytes = chunks(store), 1
    store.put_segment("aa", b"1")
    assert chunks(store) == before and half.exists(), "used just before it was set back, for all that is known"
    set_clock(store, GRACE_SECONDS + 60)
    store.put_segment("bb", b"1")
    assert not chunks(store) and not half.exists()
