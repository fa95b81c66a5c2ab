"""One chunk's frames, and a film cut at borders, in a real ComfyUI."""

import av
import numpy as np
import pytest
import torch
from helios_comfy_graphs import film, node
from PIL import Image

from helios_core.video.reader import VideoReader, read_video
from helios_core.video.remux import finish_video
from helios_core.video.segments import VideoSettings, encode_segment
from helios_setup.errors import ExecutionFailedError, PromptRejectedError
from helios_setup.server import output_files

CHUNK, CHUNKS, RATE = 12, 4, 24
SOUND_RATE = 48_000


@pytest.fixture(scope="module")
def clip(comfy):
    """Four chunks of 12 frames; stripes are the digits of every frame's number, and a tone sounds in chunk 2 alone."""
    silent = comfy.log_file.parent / "silent.mp4"
    path = comfy.log_file.parent / "input" / "numbers.mp4"
    numbers = np.arange(CHUNK * CHUNKS)
    stripes = (((numbers[:, None] >> np.arange(6)) & 1) * 200 + 20).astype(np.uint8).repeat(16, axis=1)
    frames = torch.from_numpy(stripes)[:, :, None, None].expand(-1, -1, 64, 3).contiguous()
    silent.write_bytes(encode_segment(frames, VideoSettings(64, 96, RATE)))
    times = np.arange(len(numbers) * SOUND_RATE // RATE) / SOUND_RATE
    tone = 0.5 * np.sin(times * 2 * np.pi * 440) * ((times >= 1.0) & (times < 1.5))
    finish_video(silent, path, {"waveform": torch.from_numpy(tone).float()[None, None], "sample_rate": SOUND_RATE})
    return path


def numbers_in(file):
    frames = read_video(file).numpy()
    digits = frames.reshape(len(frames), 6, -1).mean(axis=2) > 120
    return (digits << np.arange(6)).sum(axis=1).tolist()


def saved(comfy, graph):
    """Clips that SaveVideo wrote, in order."""
    files = output_files(comfy.run(graph), comfy.log_file.parent / "output")
    return [file for file in sorted(files) if file.suffix == ".mp4"]


def graph(chunks="1, 2", **changes):
    return {
        "load": node("LoadVideo", file="numbers.mp4"),
        "cut": node("HeliosSplitVideo", video=["load", 0], chunks=chunks, chunk_frames=CHUNK),
        "save": node("SaveVideo", video=["cut", 0], filename_prefix="cut", format="mp4", codec="h264"),
    } | changes


def test_clips_are_the_chunks_with_their_sound(comfy, clip):
    clips = saved(comfy, graph())
    assert [numbers_in(file) for file in clips] == [
        [*range(12)], [*range(12, 24)], [*range(24, 48)],
    ]  # fmt: skip
    loud = []
    for file in clips:
        with av.open(str(file)) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        seconds = len(sound) / SOUND_RATE
        # An AAC frame has 1024 samples; the encoder adds one in front.
        assert seconds == pytest.approx(len(read_video(file)) / RATE, abs=3 * 1024 / SOUND_RATE)
        loud.append(
            [round(float(np.abs(part).mean()), 1) for part in np.array_split(sound, len(read_video(file)) // 12)]
        )
    assert loud == [[0.0], [0.0], [0.3, 0.0]]


@pytest.mark.parametrize("chunk", [0, 2, 3])
def test_frames_of_one_chunk_of_a_file(comfy, clip, chunk):
    prompt = graph(
        frames=node("HeliosChunkFrames", film=["load", 0], chunk=chunk, chunk_frames=CHUNK),
        video=node("CreateVideo", images=["frames", 0], fps=24.0),
        save=node("SaveVideo", video=["video", 0], filename_prefix="frames", format="mp4", codec="h264"),
    )
    (file,) = saved(comfy, prompt)
    assert numbers_in(file) == [*range(chunk * CHUNK, (chunk + 1) * CHUNK)]


def test_frames_of_one_chunk_of_a_part_and_of_memory(comfy, clip):
    """The second clip of a cut film, from chunk 2 on; and the same frames held in memory."""
    frames = {
        "slice": node("Video Slice", video=["load", 0], start_time=1.0, duration=1.0, strict_duration=False),
        "parts": node("GetVideoComponents", video=["slice", 0]),
        "held": node("CreateVideo", images=["parts", 0], fps=24.0),
        "one": node("HeliosChunkFrames", film=["slice", 0], chunk=1, chunk_frames=CHUNK),
        "other": node("HeliosChunkFrames", film=["held", 0], chunk=1, chunk_frames=CHUNK),
        "both": node("ImageBatch", image1=["one", 0], image2=["other", 0]),
        "video": node("CreateVideo", images=["both", 0], fps=24.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="both", format="mp4", codec="h264"),
    }
    (file,) = saved(comfy, graph() | frames)
    assert numbers_in(file) == [*range(36, 48)] * 2


def test_frames_of_one_chunk_of_a_latent(comfy):
    """Against Helios Decode of the whole."""
    prompt = film(seed=701)
    inputs = {key: value for key, value in prompt.pop("render")["inputs"].items()
              if key in ("model", "positive", "negative", "cfg", "sampler", "history", "seed")}  # fmt: skip
    prompt["chain"] = node("HeliosChunkChain", **inputs, num_chunks=2)
    one = node("HeliosChunkFrames", film=["chain", 0], chunk=1, vae=["vae", 0], chunk_frames=33)
    for name, frames in (("whole", node("HeliosDecode", latent=["chain", 0], vae=["vae", 0])), ("part", one)):
        prompt[name] = frames
        prompt[f"{name} saved"] = node("SaveImage", images=[name, 0], filename_prefix=name)
    files = output_files(comfy.run(prompt), comfy.log_file.parent / "output")
    whole, part = (
        [np.asarray(Image.open(file)) for file in sorted(files) if file.name.startswith(name)]
        for name in ("whole", "part")
    )
    assert len(whole) == 66 and np.array_equal(whole[33:], part)


def test_a_chunk_is_found_without_decoding_what_is_before(clip, monkeypatch):
    """The reader starts at the keyframe before it; Render Video writes one at every border."""
    times = []
    look = VideoReader._look_at
    monkeypatch.setattr(VideoReader, "_look_at", lambda self, time: (times.append(time), look(self, time)))
    with VideoReader(clip, start=1.4, duration=0.2) as reader:
        assert len(list(reader)) == 5
    keys = [
        packet.pts * packet.time_base
        for packet in av.open(str(clip)).demux(video=0)
        if packet.is_keyframe and packet.pts is not None
    ]
    assert min(times) == pytest.approx(float(max(key for key in keys if key <= 1.4)))
    assert min(times) > 0.5


def test_what_is_not_there_is_refused(comfy, clip):
    frames = node("HeliosChunkFrames", film=["load", 0], chunk=4, chunk_frames=CHUNK)
    shown = node("PreviewImage", images=["frames", 0])
    with pytest.raises(ExecutionFailedError, match="chunk=4 is beyond the end of the video; chunks are counted from 0"):
        comfy.run(graph(frames=frames, shown=shown))
    with pytest.raises(ExecutionFailedError, match=r"chunks has 9, which is beyond the film's 2.00 s"):
        comfy.run(graph("1, 9"))
    with pytest.raises(PromptRejectedError, match="chunks has 'x', no chunk; list chunk numbers like '7, 14'"):
        comfy.run(graph("x"))
