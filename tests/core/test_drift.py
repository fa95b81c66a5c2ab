"""The drift report against definitions in numpy and known faults in synthetic films, and what it says to bad files."""

from __future__ import annotations

import colorsys
import json
import resource
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import cv2

from helios_core.commands.cli import main
from helios_core.errors import HeliosError
from helios_core.video.drift.aesthetic import AestheticHead
from helios_core.video.drift.meter import DriftMeter
from helios_core.video.drift.plot import picture
from helios_core.video.drift.report import Scores, report_file, report_frames, seam_strengths
from helios_core.video.growing import GrowingVideo
from helios_core.video.reader import VideoReader, read_video
from helios_core.video.segments import VideoSettings, encode_segment

CAR = Path(__file__).resolve().parents[3] / "shared" / "media" / "car.mp4"
CHUNKS, CHUNK = 44, 11  # of 11 frames, so that a film of 44 is quickly measured
HEIGHT, WIDTH = 64, 96


def smooth(shape, width, generator):
    """Noise without frequencies above 1/width, that tiles: unit variance."""
    y, x = (np.fft.fftfreq(n) for n in shape)
    keep = np.exp(-((np.hypot(y[:, None], x[None]) * width) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(generator.standard_normal(shape)) * keep).real
    return (noise - noise.mean()) / noise.std()


def scene(height=HEIGHT, width=WIDTH):
    """[H,W,3] in 0..1: a warm texture with large and small forms, whose sides meet."""
    generator = np.random.default_rng(1)
    grey = 0.1 * smooth((height, width), 24, generator) + 0.04 * smooth((height, width), 5, generator)
    return np.clip(np.array([0.6, 0.5, 0.4]) + grey[..., None], 0.02, 0.98)


def film(change=lambda image, t: image, offset=lambda i: i, frames=CHUNKS * CHUNK):
    """A pan over the scene; ``change(image, t)`` is the fault at t, 0 to 1, ``offset(i)`` the pan at frame i."""
    still = scene()
    for i in range(frames):
        image = change(np.roll(still, -offset(i), axis=1), i / (frames - 1))
        yield np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def blurred(image, t):
    y, x = (np.fft.fftfreq(n) for n in image.shape[:2])
    keep = np.exp(-(np.hypot(y[:, None], x[None]) ** 2) * 40 * t)
    return np.fft.ifft2(np.fft.fft2(image, axes=(0, 1)) * keep[..., None], axes=(0, 1)).real


def less_colour(image, t):
    grey = image.mean(axis=2, keepdims=True)
    return grey + (image - grey) * (1 - 0.5 * t)


def other_colour(image, t):
    """Turns the colour by up to 30 degrees around grey."""
    grey, angle = image.mean(axis=2, keepdims=True), np.radians(30 * t)
    d = image - grey
    across = np.cross(np.full(3, 3**-0.5), d)
    return grey + d * np.cos(angle) + across * np.sin(angle)


FAULTS = {
    "none": ({}, []),
    "gamma creep of 0.2": ({"change": lambda image, t: image ** (1 + 0.2 * t)}, ["luma"]),
    "5 pixels at each seam": ({"offset": lambda i: i + 5 * (i // CHUNK)}, ["seam"]),
    "blur ramp": ({"change": blurred}, ["sharpness"]),
    "less colour": ({"change": less_colour}, ["saturation"]),
    "other colour": ({"change": other_colour}, ["hue"]),
    "slower": ({"offset": lambda i: i + 2 * min(i, 247)}, ["motion"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_report_names_the_fault_that_was_put_in_and_no_other(name):
    fault, named = FAULTS[name]
    report = report_frames(film(**fault), chunk_frames=CHUNK)
    assert report.faults == named, report.text()
    assert report.seams == (list(range(1, CHUNKS)) if named == ["seam"] else [])


def test_one_seam_is_found_where_it_is():
    """A jump at one border of 44 is no fault of the film, and is told all the same."""
    report = report_frames(film(offset=lambda i: i + 5 * (i >= 7 * CHUNK)), chunk_frames=CHUNK)
    assert (report.faults, report.seams) == ([], [7])
    assert report.verdict() == "No drift. Seams before chunk 7."


def clips():
    yield "synthetic", np.stack(list(film(frames=3)))
    if CAR.is_file():
        with VideoReader(CAR) as reader:
            yield "real", np.stack([next(iter(reader))])


@pytest.mark.parametrize(("name", "frames"), [*clips()], ids=lambda value: value if isinstance(value, str) else "")
def test_figures_of_a_frame_are_what_their_definitions_say(name, frames):
    meter = DriftMeter()
    for frame in frames:
        meter.add(frame)
    for i, frame in enumerate(frames.astype(np.float64)):
        found = {key: meter.series(key)[i] for key in ("luma", "contrast", "saturation", "hue_x", "hue_y", "sharpness")}
        grey = np.rint(frame @ [0.299, 0.587, 0.114])
        padded = np.pad(grey, 1, mode="reflect")
        laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
        hue, _, _ = colorsys.rgb_to_hsv(*frame.reshape(-1, 3).mean(axis=0) / 255)
        assert found["luma"] == pytest.approx(grey.mean() / 255, abs=1e-4)
        assert found["contrast"] == pytest.approx(grey.std() / 255, rel=1e-3)
        assert found["saturation"] == pytest.approx(np.ptp(frame, axis=2).mean() / 255, rel=1e-5)
        assert found["sharpness"] == pytest.approx(laplacian.var(), rel=5e-3)
        # colorsys' hue goes along a hexagon, which is up to 1.12 degrees from the circle.
        assert np.degrees(np.arctan2(found["hue_y"], found["hue_x"])) % 360 == pytest.approx(hue * 360, abs=1.2)


@pytest.mark.parametrize(("width", "pan"), [(96, 2), (480, 6)])
def test_motion_is_the_pan_that_was_made(width, pan):
    """480 is above the size at which motion is followed: it is still told in the film's own pixels."""
    still = (scene(192, width) * 255).astype(np.uint8)
    meter = DriftMeter()
    for i in range(4):
        meter.add(np.roll(still, -pan * i, axis=1))
    motion, unpredicted = meter.series("motion"), meter.series("unpredicted")
    assert np.isnan(motion[0]) and np.isnan(unpredicted[:2]).all()
    # The sides, where the picture leaves and enters, are not followed.
    assert motion[1:] == pytest.approx(pan, rel=0.15)
    still_standing = np.abs(np.roll(still, -pan, axis=1).astype(float) - still).mean()
    assert (unpredicted[2:] < still_standing / 3).all()


@pytest.mark.skipif(not CAR.is_file(), reason="needs the shared media file car.mp4")
def test_motion_and_prediction_in_a_real_clip_by_hand():
    """OpenCV's flow asked here, and the frame before moved along it by bilinear interpolation in numpy."""
    with VideoReader(CAR) as reader:
        frames = [frame for frame, _ in zip(reader, range(5), strict=False)]
    meter = DriftMeter()
    for frame in frames:
        meter.add(frame)
    height, width = frames[0].shape[:2]
    scale = 320 / max(height, width)
    size = round(width * scale), round(height * scale)
    greys = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for frame in frames
    ]
    flows = [cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(greys)]
    lengths = [np.hypot(flow[..., 0], flow[..., 1]).mean() / scale for flow in flows]
    assert meter.series("motion")[1:] == pytest.approx(lengths, rel=1e-4)
    for i in range(2, 5):
        y, x = np.mgrid[: size[1], : size[0]].astype(float)
        y, x = np.clip(y - flows[i - 2][..., 1], 0, size[1] - 1), np.clip(x - flows[i - 2][..., 0], 0, size[0] - 1)
        top, left = np.minimum(y.astype(int), size[1] - 2), np.minimum(x.astype(int), size[0] - 2)
        down, right, before = y - top, x - left, greys[i - 1].astype(float)
        above = before[top, left] * (1 - right) + before[top, left + 1] * right
        below = before[top + 1, left] * (1 - right) + before[top + 1, left + 1] * right
        off = np.abs(above * (1 - down) + below * down - greys[i]).mean()
        assert meter.series("unpredicted")[i] == pytest.approx(off, rel=0.03)


def test_seam_strength_by_hand():
    unpredicted = np.array([np.nan, np.nan, 4, 4, 20, 30, 2, 2, 0.6, 9, 0.1, 0.1])
    # Inside: the third and fourth frames of both chunks: 4, 4, 2, 2 and 2, 2, 0.1, 0.1, of which one level counts.
    assert seam_strengths(unpredicted, range(4, 12, 4), 4) == pytest.approx([np.nan, 20 / 3, 0.6 / 1.05], nan_ok=True)


def test_drift_is_helios_benchs():
    """The mean of the first 15 % of frames against that of the last."""
    frames = [np.full((32, 32, 3), level, dtype=np.uint8) for level in range(100, 200)]
    (luma, *_) = report_frames(frames, chunk_frames=10).drifts
    assert luma.start == pytest.approx(np.mean(np.arange(100, 115)) / 255, abs=1e-4)
    assert luma.end == pytest.approx(np.mean(np.arange(185, 200)) / 255, abs=1e-4)
    assert luma.drift == pytest.approx(luma.end - luma.start, abs=1e-5)


def test_hue_drifts_the_short_way_round():
    red = [np.array([[[200, 60, b]]], dtype=np.uint8).repeat(32, 0).repeat(32, 1) for b in (80, 40)]
    hue = report_frames(red * 1, chunk_frames=2).drifts[3]
    assert hue.start > 300 and hue.end < 60 and 0 < hue.drift < 60


# -- files ------------------------------------------------------------------------------------------


def write(path, frames, width=WIDTH, height=HEIGHT):
    path.write_bytes(encode_segment(torch.from_numpy(np.stack(list(frames))), VideoSettings(width, height)))
    return path


def raw(path, sizes, times, transfer=None, codec="libx264"):
    """A film of ``sizes`` (width, height) with frames at ``times`` in 1/1000 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height = sizes
        stream.pix_fmt = "yuv444p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        for i, time in enumerate(times):
            picture = np.full((sizes[1], sizes[0], 3), 40 + 2 * i, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_the_one_reader_reads_frame_by_frame_what_it_reads_at_once(tmp_path):
    path = write(tmp_path / "film.mp4", film(frames=40))
    whole = read_video(path)
    with VideoReader(path) as reader:
        assert (reader.width, reader.height, reader.fps, reader.hdr) == (WIDTH, HEIGHT, 24, None)
        assert all(torch.equal(torch.from_numpy(frame), whole[i]) for i, frame in enumerate(reader))
        assert not reader.uneven
    with VideoReader(path, start=0.5, duration=0.25) as reader:
        assert torch.equal(torch.stack([torch.from_numpy(frame) for frame in reader]), whole[12:18])


@pytest.mark.parametrize("speed", [0, 1])
def test_keyframes_at_borders_are_no_seams(tmp_path, speed):
    """Every chunk of Render Video begins with a keyframe; at the quality usual for the web that is no seam."""
    growing = GrowingVideo(tmp_path / "film.partial.mp4")
    frames = torch.from_numpy(np.stack(list(film(offset=lambda i: speed * i, frames=99))))
    for chunk in frames.split(33):
        growing.append(encode_segment(chunk, VideoSettings(WIDTH, HEIGHT, crf=23)))
    report = report_file(growing.path)
    growing.close()
    assert (report.seams, report.faults) == ([], []), report.text()


def test_command_line_writes_text_json_and_plot(tmp_path, capsys):
    files = [write(tmp_path / f"{name}.mp4", film(change, frames=99)) for name, change in
             (("calm", lambda image, t: image), ("dim", lambda image, t: image ** (1 + 0.3 * t)))]  # fmt: skip
    assert main(["drift", *map(str, files), "--plot", "--json", "--prompt-changes", "1"]) == 0
    said = capsys.readouterr().out
    assert "calm.mp4: 99 frames, 96x64, 24 fps, 3 chunks of 33" in said
    assert "No drift." in said and "Drift: luma (" in said
    found = json.loads((tmp_path / "dim.drift.json").read_text())
    assert found["faults"] == ["luma"] and found["prompt_changes"] == [1] and found["chunks"]["seam"][0] is None
    assert len(found["chunks"]["luma"]) == 3 and found["chunks"]["luma"][0] > found["chunks"]["luma"][2]
    assert (tmp_path / "calm.drift.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_shows_what_drifts_and_where_the_prompt_changes():
    """By colour: a named curve is red, a prompt change violet."""

    def has(shown, colour):
        return (np.abs(shown.astype(int) - colour).max(axis=2) < 40).any()

    red, violet = (192, 57, 43), (125, 60, 152)
    frames = list(film(FAULTS["gamma creep of 0.2"][0]["change"], frames=5 * CHUNK))
    dim = picture(report_frames(frames, chunk_frames=CHUNK, changes=[2]))
    calm = picture(report_frames([frames[0]] * 22, chunk_frames=CHUNK))
    assert dim.dtype == np.uint8 and dim.shape == calm.shape == (900, 1100, 3)
    assert has(dim, red) and has(dim, violet)
    assert not has(calm, red) and not has(calm, violet)


def test_odd_files_get_an_answer(tmp_path):
    steady = range(0, 1200, 40)
    short = report_file(raw(tmp_path / "short.mp4", (96, 64), range(0, 400, 40)))
    assert short.frames == 10 and "less than a chunk of 33" in short.notes[0]
    odd = report_file(raw(tmp_path / "odd.mkv", (97, 63), steady, codec="ffv1"))
    assert (odd.width, odd.height, odd.faults) == (97, 63, ["luma"])
    tiny = report_file(raw(tmp_path / "tiny.mkv", (6, 4), steady, codec="ffv1"))
    assert tiny.drifts[-1].drift is None and tiny.drifts[0].named
    uneven = report_file(raw(tmp_path / "uneven.mp4", (96, 64), [0, 40, 80, 180, 220, 400, 440]))
    assert uneven.notes[0].startswith("The frame rate varies")
    hdr = report_file(raw(tmp_path / "hdr.mp4", (96, 64), steady, transfer=16))
    assert hdr.notes == ("The file is HDR (PQ): the figures are of its coded values, not of brightness.",
                         "The film has 30 frames, less than a chunk of 33: it has no seams.")  # fmt: skip
    single = report_file(raw(tmp_path / "one.mp4", (96, 64), [0]))
    assert single.frames == 1 and picture(single).any()


def test_bad_files_get_one_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    raw(tmp_path / "empty.mkv", (96, 64), [], codec="ffv1")
    for name, message in (
        ("nowhere.mp4", "cannot be read"),
        ("text.mp4", "cannot be read"),
        ("sound.m4a", "has no picture"),
        ("empty.mkv", "has no frames|cannot be read"),
    ):
        with pytest.raises(HeliosError, match=message):
            report_file(tmp_path / name)
    with pytest.raises(HeliosError, match="frames holds no frames"):
        report_frames([])
    with pytest.raises(HeliosError, match="chunk_frames=1 must be at least 2"):
        report_frames(film(frames=3), chunk_frames=1)


@pytest.mark.parametrize(
    ("package", "module"), [("opencv-python-headless", "cv2"), ("matplotlib", "matplotlib.figure")]
)
def test_absent_packages_are_one_sentence(monkeypatch, package, module):
    report = report_frames(film(frames=3))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HeliosError, match=f"which is not installed; run pip install {package}"):
        picture(report_frames(film(frames=3)) if module == "cv2" else report)


def test_a_score_of_another_network_is_one_more_measure(tmp_path):
    """Of every fourth frame; without it the report says what is missing."""
    asked = []

    class Bright:
        names = ("aesthetic",)

        def __call__(self, frame):
            asked.append(frame)
            return {"aesthetic": float(frame.mean()) / 25.5}

    darker = list(film(lambda image, t: image * (1 - 0.5 * t), frames=66))
    scored = report_frames(darker, chunk_frames=33, scores=Scores(Bright(), {"semantic": "no"}))
    assert [frame.tolist() for frame in asked] == [frame.tolist() for frame in darker[::4]]
    means = [float(frame.mean()) / 25.5 for frame in darker[::4]]
    assert scored.chunks["aesthetic"] == pytest.approx([np.mean(means[:9]), np.mean(means[9:])], abs=1e-4)
    assert scored.drifts[-1].drift == pytest.approx(np.mean(means[:3]) - np.mean(means[15:]), abs=1e-4)
    assert "aesthetic" in scored.faults and json.loads(scored.json())["not_measured"] == {"semantic": "no"}
    assert picture(scored).shape == picture(report_frames(darker, chunk_frames=33)).shape
    plain = report_frames(darker, chunk_frames=33)
    assert "aesthetic" not in plain.chunks
    assert json.loads(plain.json())["not_measured"].keys() == {"aesthetic", "semantic"}
    assert "Not measured: aesthetic (it takes CLIP ViT-L/14 and LAION's head" in plain.text()
    assert "Not measured: semantic (it takes the film's prompt and CLIP" in plain.text()


@pytest.mark.parametrize("tensors", [
    {}, {"weight": torch.zeros(1, 8)}, {"weight": torch.zeros(2, 8), "bias": torch.zeros(2)},
    {"0.weight": torch.zeros(4, 8), "0.bias": torch.zeros(4), "2.weight": torch.zeros(1, 5), "2.bias": torch.zeros(1)},
    {"weight": torch.zeros(1, 8), "bias": torch.zeros(1), "running_mean": torch.zeros(8)},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_files_that_are_no_head_are_named(tmp_path, tensors, kind):
    path = tmp_path / f"head.{kind}"
    if kind == "pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    with pytest.raises(HeliosError, match=f"head.{kind} is no aesthetic head"):
        AestheticHead.read(path)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(tmp_path):
    """A minute at the released size against its first 8 chunks, each in a process of its own."""

    def frames(chunks):
        still = (scene(384, 640) * 255).astype(np.uint8)
        return (np.roll(still, -i, axis=1) for i in range(33 * chunks))

    peaks = {}
    for chunks in (8, 44):
        path = write(tmp_path / f"{chunks}.mp4", frames(chunks), 640, 384)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        code = (
            "import resource, sys; from helios_core.video.drift.report import report_file; "
            "print(report_file(sys.argv[1]).frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        count, peaks[chunks] = map(int, done.stdout.split())
        spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        print(f"{count} frames, {peaks[chunks] / 1024:.0f} MiB, {count / spent:.0f} frames a second of processor time")
    assert peaks[44] - peaks[8] < 60 * 1024
