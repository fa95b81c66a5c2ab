"""Helios Process Video: grouping and sound by the library, and a real upscale model in a real ComfyUI."""

import weakref

import av
import numpy as np
import pytest
import torch
from helios_comfy_graphs import node
from safetensors.torch import save_file

from helios_core.errors import HeliosError
from helios_core.video.audio import CopiedSound, sound_of
from helios_core.video.process import in_groups, interpolated, write_processed
from helios_core.video.reader import read_video
from helios_core.video.remux import finish_video
from helios_core.video.segments import VideoSettings, encode_segment
from helios_setup.errors import ExecutionFailedError
from helios_setup.server import output_files

FRAMES, RATE, SOUND_RATE = 20, 10, 48_000


@pytest.fixture(scope="module")
def clip(comfy):
    """20 frames of a texture that moves, in 2 s; the second half sounds."""
    still = np.random.default_rng(2).uniform(40, 220, (4, 6, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    frames = torch.from_numpy(np.stack([np.roll(still, 2 * i, axis=1) for i in range(FRAMES)]))
    silent = comfy.log_file.parent / "silent20.mp4"
    silent.write_bytes(encode_segment(frames, VideoSettings(48, 32, RATE, crf=4)))
    path = comfy.log_file.parent / "input" / "textures.mp4"
    times = torch.arange(SOUND_RATE * FRAMES // RATE) / SOUND_RATE
    tone = 0.5 * torch.sin(times * 2 * torch.pi * 440) * (times >= 1)
    finish_video(silent, path, {"waveform": tone[None, None], "sample_rate": SOUND_RATE})
    return path


def loudness(path, parts=2):
    with av.open(str(path)) as file:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    return [round(float(np.abs(part).mean()), 1) for part in np.array_split(sound, parts)]


@pytest.mark.parametrize("at_once", [1, 3, 8, 64])
def test_interpolation_knows_no_groups(at_once):
    """A stand-in for a model: the mean between two frames. Groups must not show."""
    frames = [np.full((2, 2, 3), 10 * i, dtype=np.uint8) for i in range(10)]

    def between(group):
        halves = (group[1:] + group[:-1]) / 2
        return torch.stack([group[:-1], halves], dim=1).flatten(0, 1).clone() if len(group) < 2 else torch.cat(
            [torch.stack([group[:-1], halves], dim=1).flatten(0, 1), group[-1:]]
        )  # fmt: skip

    made = torch.cat(list(interpolated(in_groups(frames, at_once), between)))
    assert [round(value * 255, 1) for value in made[:, 0, 0, 0].tolist()] == [5.0 * i for i in range(19)]


def test_a_part_of_the_sound_comes_along(clip, tmp_path):
    """The clip's middle: half a second of silence and half a second of tone, at the beginning of the new file."""
    assert sound_of(clip) == "aac"
    frames = in_groups((frame.numpy() for frame in read_video(clip)[5:15]), 4)
    path = write_processed(
        frames,
        tmp_path / "new.partial.mp4",
        lambda width, height: VideoSettings(width, height, RATE),
        lambda finished: finished.rename(tmp_path / "new.mp4"),
        lambda container: CopiedSound(container, clip, start=0.5, duration=1.0),
    )
    assert len(read_video(path)) == 10 and loudness(path) == [0.0, 0.3]
    assert [file.name for file in tmp_path.iterdir()] == ["new.mp4"]


def test_no_more_frames_are_held_than_are_worked_at(tmp_path):
    """Of a film thirty times as long, larger and smoother: neither frames that were read nor groups that were made."""
    frames, groups, most = [], [], 0

    def held():
        return sum(ref() is not None for ref in (*frames, *groups))

    def read():
        nonlocal most
        for i in range(120):
            frame = np.full((16, 16, 3), i, dtype=np.uint8)
            frames.append(weakref.ref(frame))
            most = max(most, held())
            yield frame

    def larger(group):
        made = group.repeat_interleave(2, 1).repeat_interleave(2, 2)
        groups.append(weakref.ref(made))
        return made

    def twice(group):
        return torch.cat([group[:-1].repeat_interleave(2, 0), group[-1:]])

    path = write_processed(
        interpolated(map(larger, in_groups(read(), 4)), twice),
        tmp_path / "new.partial.mp4",
        lambda width, height: VideoSettings(width, height, 2 * RATE),
        lambda finished: finished.rename(tmp_path / "new.mp4"),
    )
    assert read_video(path).shape == (239, 32, 32, 3)
    assert len(frames) == 120 and len(groups) == 30 and most <= 4 + 2


def test_what_cannot_be_a_film_leaves_nothing(tmp_path):
    sizes = [torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 32, 3)]
    for groups, message in ((sizes, "became 32x16"), ([], "no frames"), ([torch.zeros(1, 15, 16, 3)], "must be even")):
        with pytest.raises(HeliosError, match=message):
            write_processed(groups, tmp_path / "x.partial.mp4", VideoSettings, lambda path: path)
    assert list(tmp_path.iterdir()) == []


def doubling(path):
    """SRVGGNetCompact with zero weights: the nearest enlargement that it adds its correction to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {"body.0": (4, 3, 3, 3), "body.2": (4, 4, 3, 3), "body.4": (12, 4, 3, 3)}
    weights = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    save_file(weights | {"body.1.weight": torch.zeros(4), "body.3.weight": torch.zeros(4)}, path)


def test_a_film_through_an_upscale_model(comfy, clip):
    doubling(comfy.log_file.parent / "models" / "upscale_models" / "doubling.safetensors")
    graph = {
        "load": node("LoadVideo", file="textures.mp4"),
        "model": node("UpscaleModelLoader", model_name="doubling.safetensors"),
        "process": node("HeliosProcessVideo", video=["load", 0], upscale_model=["model", 0], multiplier=2,
                        frames_at_once=8, codec="h264", quality=4, filename_prefix="processed"),
    }  # fmt: skip
    (file,) = output_files(comfy.run(graph), comfy.log_file.parent / "output")
    found, expected = read_video(file).float(), read_video(clip).float()
    assert found.shape == (FRAMES, 64, 96, 3)
    assert (found[:, ::2, ::2] - expected).abs().mean() < 4 and (found[:, 1::2, 1::2] - expected).abs().mean() < 4
    assert loudness(file) == loudness(clip) == [0.0, 0.3]
    with av.open(str(file)) as container:
        assert container.streams.video[0].average_rate == RATE
    graph["process"]["inputs"]["scale"] = 0.5
    (file,) = output_files(comfy.run(graph), comfy.log_file.parent / "output")
    back = read_video(file).float()
    assert back.shape == expected.shape and (back - expected).abs().mean() < 6
    del graph["process"]["inputs"]["upscale_model"]
    graph["process"]["inputs"]["scale"] = 1.5
    (file,) = output_files(comfy.run(graph), comfy.log_file.parent / "output")
    assert read_video(file).shape == (FRAMES, 48, 72, 3)
    graph["process"]["inputs"]["scale"] = 1.0
    with pytest.raises(ExecutionFailedError, match="upscale_model and interp_model are both not connected"):
        comfy.run(graph)
    graph["process"]["inputs"]["interp_model"] = "a name"
    with pytest.raises(ExecutionFailedError, match="interp_model is 'a name', not a INTERP_MODEL"):
        comfy.run(graph)
