"""The video of a running take: encoded on its own thread, reused from the store, finished as a normal MP4."""

import functools
import os
import time
from dataclasses import replace

import av
import pytest
import torch

from helios_core.errors import HeliosError
from helios_core.take.store import ChunkStore
from helios_core.take.video import TakeVideo, segment_key
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings

SETTINGS = VideoSettings(64, 32)


def frames(seed: int = 0) -> torch.Tensor:
    coarse = torch.randint(0, 255, (33, 4, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.fixture
def store(tmp_path) -> ChunkStore:
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    return store


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_every_length_plays_and_equals_the_finished_file(tmp_path, store, codec):
    settings = replace(SETTINGS, codec=codec, fps=23.976)
    path, lengths = tmp_path / "film.partial.mp4", []

    def on_chunk(_, partial):
        lengths.append(len(read_video(partial)))

    with TakeVideo(path, settings, store, on_chunk=on_chunk) as video:
        for i in range(3):
            video.add(str(i), functools.partial(frames, i))
        video._stop()
        growing = read_video(path)
        video.finish(lambda part: part.replace(tmp_path / "film.mp4"))
    assert lengths == [33, 66, 99]
    finished = read_video(tmp_path / "film.mp4")
    assert torch.equal(finished, growing)
    for i, part in enumerate(finished.split(33)):
        assert (part.float() - frames(i).float()).abs().mean() < 8
    assert not path.exists()
    with av.open(str(tmp_path / "film.mp4")) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None]
    assert sorted(times) == [i / settings.rate for i in range(99)]


def test_a_full_disk_is_told(tmp_path, store, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(HeliosError, match=r"cannot be written .No space left on device.*finished chunks are kept"),
        TakeVideo(tmp_path / "other.partial.mp4", SETTINGS, store) as take,
    ):
        for i in range(9):
            take.add(str(i), frames)


def test_segments_are_reused_unless_settings_differ(tmp_path, store):
    def render(settings, vae="v"):
        decoded = []
        with TakeVideo(tmp_path / "film.partial.mp4", settings, store, vae) as video:
            video.add("a", lambda: decoded.append(1) or frames())
            video.finish(lambda part: part.replace(tmp_path / "film.mp4"))
        return len(decoded)

    assert [render(SETTINGS), render(SETTINGS), render(replace(SETTINGS, crf=30))] == [1, 0, 1]
    assert render(SETTINGS, "another VAE") == 1


def test_a_damaged_segment_is_made_again(tmp_path, store):
    def render():
        decoded = []
        with TakeVideo(tmp_path / "film.partial.mp4", SETTINGS, store) as video:
            for i in range(2):
                video.add(str(i), lambda i=i: decoded.append(i) or frames(i))
            video.finish(lambda part: part.replace(tmp_path / "film.mp4"))
        return decoded, read_video(tmp_path / "film.mp4")

    decoded, film = render()
    assert decoded == [0, 1]
    path = store.segment_file(segment_key("1", "", SETTINGS))
    path.write_bytes(path.read_bytes()[:-1])
    decoded, again = render()
    assert decoded == [1] and torch.equal(film, again)


def test_a_running_take_marks_its_segments_as_used(tmp_path, store):
    with TakeVideo(tmp_path / "film.partial.mp4", SETTINGS, store) as video:
        video.add("a", frames)
        video._stop()
    path = store.segment_file(segment_key("a", "", SETTINGS))
    os.utime(path, (0, 0))
    with TakeVideo(tmp_path / "film.partial.mp4", SETTINGS, store) as video:
        video.add("a", frames)
        video.add("b", frames)
    assert path.stat().st_mtime > time.time() - 600


def test_the_queue_is_bounded_and_errors_arrive(tmp_path, store):
    with TakeVideo(tmp_path / "film.partial.mp4", SETTINGS, store) as video:
        assert video._queue.maxsize == 1
        with pytest.raises(HeliosError, match="encoder failed"):
            for i in range(9):
                video.add(str(i), lambda: torch.zeros(33, 32, 64, 3))
    assert not (tmp_path / "film.partial.mp4").exists(), "nothing was written to it"
