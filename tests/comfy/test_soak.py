"""Short soaks: the jobs, films, measurements and bounds of the benchmarks."""

import shutil
import sys

import pytest
from helios_benchmarks import live, memory, soak

JOBS, WARM, INTERRUPTS = 24, 12, 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures through /proc")
def test_jobs_leave_nothing_behind(comfyui_tree, tmp_path, monkeypatch):
    monkeypatch.setenv(soak.LIMIT_VARIABLE, str(soak.QUOTA_MIB / 1024))
    monkeypatch.setenv(*soak.HEAPS)
    with soak.start(comfyui_tree, tmp_path) as server:
        rows = list(soak.soak(server, tmp_path, soak.plan(JOBS, INTERRUPTS, seed=0)))
    figures = soak.summary(rows, WARM)
    assert not figures["failed"], [row.outcome for row in rows]
    assert figures["rss_growth"] <= soak.ALLOWED_MIB
    assert figures["handles_growth"] <= soak.ALLOWED_HANDLES and figures["threads_growth"] <= soak.ALLOWED_THREADS
    assert figures["store_largest"] <= soak.QUOTA_MIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures through /proc")
def test_a_live_film_leaves_nothing_behind(comfyui_tree, tmp_path, monkeypatch):
    monkeypatch.setenv(soak.LIMIT_VARIABLE, str(soak.QUOTA_MIB / 1024))
    film = live.LiveFilm()
    with live.clocked(comfyui_tree, tmp_path) as server:
        live.measure(film, server, (64, 64), chunks=24, directions=4)
    figures = live.summary(film)
    assert (figures["chunks"], figures["directions"]) == (24, 4)
    assert figures["rss_growth"] <= soak.ALLOWED_MIB
    assert figures["handles_growth"] <= soak.ALLOWED_HANDLES and figures["threads_growth"] <= soak.ALLOWED_THREADS
    assert film.waited.keys() == {"feed", "file", "prompts"} and all(film.waited.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures through /proc")
def test_a_films_peak_does_not_grow_with_its_length(comfyui_tree, tiny_models, tmp_path, monkeypatch):
    """With blocks given back when they are freed, so that what is measured is what is held. A leaked chunk: 6 MiB."""
    for name, value in (soak.HEAPS, ("MALLOC_TRIM_THRESHOLD_", soak.HEAPS[1]), ("MALLOC_ARENA_MAX", "1")):
        monkeypatch.setenv(name, value)
    (tmp_path / "models" / "diffusers").mkdir(parents=True)
    shutil.copytree(tiny_models[memory.TINY], tmp_path / "models" / "diffusers" / memory.TINY)
    short, long = (memory.comfyui(comfyui_tree, tmp_path, 128, 128, chunks)[0] for chunks in (8, 44))
    assert long - short <= 20


def test_a_directions_time_is_told_in_parts_of_the_one_allowed():
    """Chunks of 2 s; one prompt is given half a second before a chunk ends, another one 1.5 s, both shown 2 s later."""
    ends = {chunk: 2.0 * chunk for chunk in range(12)}
    ends[11] = 23.0  # one second late
    chunks = [live.Measured(chunk, at, 100.0 + chunk, 10, 4) for chunk, at in ends.items()]
    film = live.LiveFilm(chunks, [live.Said(15.5, 9), live.Said(18.5, 11)], {"feed": 0.23}, 23.0)
    figures = live.summary(film)
    assert figures["chunk_seconds"] == 2.0 and figures["rss_growth"] == 4.0
    assert figures["direction_seconds"] == pytest.approx((2.5 + 4.5) / 2)
    assert figures["direction_of_allowed"] == pytest.approx((1 + 4.5 / 3.5) / 2)
    assert figures["direction_of_allowed_worst"] == pytest.approx(4.5 / 3.5)
    assert figures["directions_late"] == 1 and figures["chunk_seconds_of_new_prompts"] == 2.5
    assert figures["waited_for_feed"] == pytest.approx(0.01)
