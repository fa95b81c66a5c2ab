"""MP4 writing, read back with PyAV and, where it is installed, ffprobe."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor

from helios_core.errors import HeliosError
from helios_core.video.frames import at_rate, frames_to_uint8
from helios_core.video.growing import GrowingVideo
from helios_core.video.reader import read_video
from helios_core.video.remux import finish_video
from helios_core.video.segments import CODECS, VideoSettings, encode_segment

WIDTH, HEIGHT = 96, 64


def gradient(frames: int) -> torch.Tensor:
    """Smooth colours that drift from frame to frame, uint8 [F, H, W, 3]."""
    t = torch.linspace(0, 1, frames).view(-1, 1, 1).expand(frames, HEIGHT, WIDTH)
    y = torch.linspace(0, 1, HEIGHT).view(1, -1, 1).expand_as(t)
    x = torch.linspace(0, 1, WIDTH).view(1, 1, -1).expand_as(t)
    return (torch.stack([x, y, 0.5 * (t + 1 - x)], dim=-1) * 255).round().to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return 10 * math.log10(255**2 / (a.double() - b.double()).square().mean().item())


def write(path: Path, frames: torch.Tensor, parts: int = 1, metadata: dict | None = None, **options) -> None:
    """A finished film of ``parts`` segments."""
    settings = VideoSettings(WIDTH, HEIGHT, **options)
    growing = GrowingVideo(path.with_name("growing.mp4"))
    for part in frames.chunk(parts):
        growing.append(encode_segment(part, settings))
    try:
        finish_video(growing.path, path, metadata=metadata)
    finally:
        growing.close(remove=True)


@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_returns(tmp_path, codec):
    path = tmp_path / "clip.mp4"
    frames = gradient(33)
    write(path, frames, parts=3, codec=codec)
    result = read_video(path)
    assert result.shape == frames.shape
    assert psnr(result, frames) > 38
    assert psnr(result[0], frames[0]) > psnr(result[0], frames[-1]) + 10  # in the right order
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 2])
def test_very_short_clips(tmp_path, codec, count):
    path = tmp_path / "clip.mp4"
    write(path, gradient(count), codec=codec)
    assert len(read_video(path)) == count


@pytest.mark.parametrize(
    ("rgb", "luma"),
    # BT.709 limited range: 16 + 219 * (0.2126 R + 0.7152 G + 0.0722 B)
    [((255, 255, 255), 235), ((0, 0, 0), 16), ((255, 0, 0), 63), ((0, 255, 0), 173), ((0, 0, 255), 32)],
)
def test_colours_are_bt709_limited_range(tmp_path, rgb, luma):
    path = tmp_path / "clip.mp4"
    write(path, torch.tensor(rgb, dtype=torch.uint8).expand(2, HEIGHT, WIDTH, 3), crf=1)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        assert context.color_range == 1
        frame = next(container.decode(stream))
    assert abs(int(frame.to_ndarray()[HEIGHT // 2, WIDTH // 2]) - luma) <= 1
    shown = read_video(path)[0, HEIGHT // 2, WIDTH // 2]
    assert (shown.int() - torch.tensor(rgb).int()).abs().max() <= 2


def test_stream_and_metadata(tmp_path):
    path = tmp_path / "clip.mp4"
    metadata = {"prompt": {"1": {"class_type": "Helios", "text": "Füchse"}}, "seed": 7}
    write(path, gradient(12), fps=30000 / 1001, metadata=metadata)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(30000 / 1001, rel=1e-6)
        assert float(stream.duration * stream.time_base) == pytest.approx(12 * 1001 / 30000, abs=1e-3)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert {key: json.loads(container.metadata[key]) for key in metadata} == metadata
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("codec", CODECS)
def test_crf_sets_the_quality(tmp_path, codec):
    good, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    frames = torch.randint(0, 256, (4, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    write(good, frames, codec=codec, crf=10)
    write(bad, frames, codec=codec, crf=45)
    assert bad.stat().st_size < good.stat().st_size / 2


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_agrees(tmp_path):
    path = tmp_path / "clip.mp4"
    write(path, gradient(33))
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    (stream,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    expected = {
        "codec_name": "h264",
        "width": WIDTH,
        "height": HEIGHT,
        "pix_fmt": "yuv420p",
        "color_range": "tv",
        "color_space": "bt709",
        "color_transfer": "bt709",
        "color_primaries": "bt709",
        "avg_frame_rate": "24/1",
        "nb_read_frames": "33",
    }
    assert {key: stream[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 97}, "97x64.*nearest is 96x64"),
        ({"height": 0}, "96x0"),
        ({"codec": "mpeg1"}, "'mpeg1': choose one of h264"),
        ({"fps": 0}, "frame rate is 0"),
        ({"fps": float("nan")}, "frame rate is nan"),
        ({"crf": 60}, "crf is 60"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(HeliosError, match=words):
        VideoSettings(**{"width": WIDTH, "height": HEIGHT, **options})


def test_metadata_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(HeliosError, match="metadata is not JSON"):
        write(tmp_path / "clip.mp4", gradient(2), metadata={"bad": object()})


def test_read_video_refuses(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("nowhere.mp4", "text.mp4"):
        with pytest.raises(HeliosError, match="cannot be read"):
            read_video(tmp_path / name)


def test_frames_to_uint8_equals_diffusers():
    video = torch.rand((1, 3, 5, 16, 8), generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    expected = VideoProcessor(vae_scale_factor=8).postprocess_video(video, output_type="pil")[0]
    expected = np.stack([np.asarray(image) for image in expected])
    assert np.array_equal(frames_to_uint8(video).numpy(), expected)
    assert torch.equal(frames_to_uint8(video[0]), frames_to_uint8(video))


def test_frames_to_uint8_refuses():
    for video in (torch.zeros(2, 3, 5, 8, 8), torch.zeros(5, 8, 8, 3), torch.zeros(3, 5, 8, 8).byte()):
        with pytest.raises(HeliosError, match="give one video of floats"):
            frames_to_uint8(video)


@pytest.mark.parametrize(("fps", "count"), [(30.0, 60), (60.0, 61), (12.0, 20), (25.0, 50), (30000 / 1001, 40)])
def test_a_clip_of_another_rate_plays_as_fast(fps, count):
    """Every frame is the one whose time is nearest, and the clip is as long."""
    times = np.arange(count) / fps
    chosen = at_rate(count, fps)
    assert -1e-9 <= times[-1] + 1 / fps - len(chosen) / 24 < 1 / 24
    assert all(abs(times[frame] - i / 24) <= abs(times - i / 24).min() + 1e-9 for i, frame in enumerate(chosen))


@pytest.mark.parametrize("fps", [24.0, 24000 / 1001, None])
def test_a_clip_of_the_same_rate_stays_as_it_is(fps):
    assert at_rate(7, fps) == list(range(7))
