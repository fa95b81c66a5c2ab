"""A film that grows segment by segment: playable at every moment, and the same film whatever happened before."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import pytest
import torch
from safetensors.torch import save_file

from helios_core.video.growing import GrowingVideo
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment

SETTINGS = VideoSettings(64, 32)


def frames(seed: int = 0) -> torch.Tensor:
    coarse = torch.randint(0, 255, (33, 4, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)


def grown(path, segments):
    video = GrowingVideo(path)
    for segment in segments:
        video.append(segment)
    video.close()
    return video


def packets(path):
    """(time, length, bytes) of every encoded picture, times in seconds."""
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(video=0) if packet.dts is not None]
        assert all(packet.pts == packet.dts for packet in found)
        return [(p.pts * p.time_base, p.duration * p.time_base, bytes(p)) for p in found]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("fps", [24, 23.976, 59.94, 12.5, 1])
def test_the_film_is_its_segments_one_after_the_other(tmp_path, codec, fps):
    settings, lengths = replace(SETTINGS, codec=codec, fps=fps), (33, 5, 33, 1)
    segments = [encode_segment(frames(i)[:length], settings) for i, length in enumerate(lengths)]
    path, alone = tmp_path / "film.partial.mp4", []
    for number, segment in enumerate(segments):
        (tmp_path / f"{number}.mp4").write_bytes(segment)
        alone.append(tmp_path / f"{number}.mp4")
    grown(path, segments)
    assert torch.equal(read_video(path), torch.cat([read_video(file) for file in alone]))
    coded = [data for file in alone for _, _, data in packets(file)]
    rate = Fraction(fps).limit_denominator(1001)
    assert packets(path) == [(index / rate, 1 / rate, data) for index, data in enumerate(coded)]


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_ffprobe_finds_one_stream_of_rising_times(tmp_path, codec):
    settings = replace(SETTINGS, codec=codec)
    path = tmp_path / "film.partial.mp4"
    grown(path, [encode_segment(frames(i), settings) for i in range(3)])
    command = ["ffprobe", "-v", "warning", "-show_entries", "packet=pts,dts:stream=time_base", "-of", "json", path]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stderr == ""
    info = json.loads(told.stdout)
    ticks = 1 / Fraction(info["streams"][0]["time_base"]) / 24
    assert [packet["pts"] for packet in info["packets"]] == [index * ticks for index in range(99)]
    assert [packet["dts"] for packet in info["packets"]] == [index * ticks for index in range(99)]


def test_a_torn_tail_is_written_again(tmp_path):
    segments = [encode_segment(frames(i), SETTINGS) for i in range(3)]
    path, whole = tmp_path / "film.partial.mp4", tmp_path / "whole.partial.mp4"
    grown(whole, segments)
    expected = whole.read_bytes()
    for length in (0, 10, 500, len(expected) // 2, len(expected) - 1, len(expected)):
        path.write_bytes(expected[:length])
        grown(path, segments)
        assert path.read_bytes() == expected


def test_a_full_disk_keeps_the_chunks_before(tmp_path, monkeypatch):
    segments = [encode_segment(frames(i), SETTINGS) for i in range(2)]
    video = GrowingVideo(tmp_path / "film.partial.mp4")
    video.append(segments[0])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space"):
        video.append(segments[1])
    assert len(read_video(tmp_path / "film.partial.mp4")) == 33


def test_a_changed_chunk_replaces_what_follows_only_then(tmp_path):
    segments = [encode_segment(frames(i), SETTINGS) for i in range(4)]
    path = tmp_path / "film.partial.mp4"
    grown(path, segments[:3])
    video = GrowingVideo(path)
    video.append(segments[0])
    assert len(read_video(path)) == 99, "nothing is lost before the new chunk exists"
    video.append(segments[3])
    assert len(read_video(path)) == 66
    video.close()


def test_two_writers_of_one_name_get_two_files(tmp_path):
    one, two = (GrowingVideo(tmp_path / "film.partial.mp4") for _ in range(2))
    assert one.path != two.path
    one.close()
    three = GrowingVideo(tmp_path / "film.partial.mp4")
    assert three.path == one.path
    two.close()
    three.close()
    assert not list(tmp_path.iterdir()), "nothing was written, and no lock stays behind"


WRITER = """
import sys
from pathlib import Path
from helios_core.video.growing import GrowingVideo
video = GrowingVideo(Path(sys.argv[1]))
video.append(Path(sys.argv[2]).read_bytes())
print(video.path.name, flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_writes_is_left_alone_until_that_process_ends(tmp_path):
    segment, path = encode_segment(frames(), SETTINGS), tmp_path / "films" / "film.partial.mp4"
    (tmp_path / "segment").write_bytes(segment)
    command = [sys.executable, "-c", WRITER, str(path), str(tmp_path / "segment")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "film.partial.mp4\n"
        other = GrowingVideo(path)
        assert other.path.name == "film-2.partial.mp4"
        other.close()
        process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        process.wait(60)
    assert len(read_video(path)) == 33
    after = GrowingVideo(path)
    assert after.path == path
    after.append(segment)
    after.close()
    assert list(path.parent.iterdir()) == [path], "the lock that the killed process left is gone"


@pytest.mark.skipif(sys.platform != "linux", reason="the filling of fresh memory is glibc's")
def test_the_same_frames_give_the_same_segment_whatever_was_in_memory(tmp_path):
    # x265 has no settings that pass this; its segments are stored like x264's, and equal in every other way.
    save_file({str(i): frames(i) for i in range(3)}, tmp_path / "frames.safetensors")
    program = (
        "import hashlib, sys; from safetensors.torch import load_file\n"
        "from helios_core.video.segments import VideoSettings, encode_segment\n"
        "for _, frames in sorted(load_file(sys.argv[1]).items()):\n"
        "    print(hashlib.md5(encode_segment(frames, VideoSettings(64, 32))).hexdigest())"
    )
    results = set()
    for filling in ("0", "85", "170"):
        environment = {**os.environ, "MALLOC_PERTURB_": filling}
        command = [sys.executable, "-c", program, str(tmp_path / "frames.safetensors")]
        results.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(results) == 1
