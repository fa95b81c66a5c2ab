"""Films joined to one: every frame of every part in order, and nothing encoded twice where the parts fit."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from helios_core.errors import HeliosError
from helios_core.video.audio import shifted
from helios_core.video.join import Part, file_part, join_parts, settings_for
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment

SETTINGS = VideoSettings(64, 32)


def frames(seed: int, count: int = 33) -> torch.Tensor:
    """Blocks of colour, which survive encoding."""
    coarse = torch.randint(0, 255, (count, 2, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)


def film(path, seed, settings=SETTINGS, count=33):
    path.write_bytes(encode_segment(frames(seed, count), settings))
    return path


def foreign(path, seed):
    """As other programs write films: with B-frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"bf": "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for image in frames(seed).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def joined(tmp_path, parts, codec="h264", crf=18, **more):
    settings = settings_for(parts, 24, codec, crf)
    target = tmp_path / "joined.mp4"
    return target, join_parts(parts, target, settings, **more)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("crf", [18, 30])
def test_films_of_one_coding_are_copied_bit_for_bit(tmp_path, codec, crf):
    settings = replace(SETTINGS, codec=codec, crf=crf)
    files = [film(tmp_path / f"{i}.mp4", i, settings, count) for i, count in enumerate((33, 5, 66))]
    # The quality asked for is another one: nothing is encoded, so it does not matter.
    target, is_copied = joined(tmp_path, [file_part(file) for file in files], codec)
    assert is_copied == [True] * 3
    assert packets(target) == [data for file in files for data in packets(file)]
    assert torch.equal(read_video(target), torch.cat([read_video(file) for file in files]))
    with av.open(str(target)) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.dts is not None]
    assert times == [Fraction(i, 24) for i in range(104)]


def test_what_does_not_fit_is_encoded_and_the_rest_is_copied(tmp_path):
    ours, other = film(tmp_path / "ours.mp4", 1), foreign(tmp_path / "foreign.mp4", 2)
    still = frames(3, 40)
    parts = [file_part(other), Part(lambda: iter(still.numpy()), 64, 32), file_part(ours)]
    target, is_copied = joined(tmp_path, parts)
    assert is_copied == [False, False, True]
    assert packets(target)[73:] == packets(ours)
    shown, wanted = read_video(target), torch.cat([frames(2), still, frames(1)])
    assert shown.shape == wanted.shape
    errors = np.square(shown.numpy().astype(float) - wanted.numpy()).mean((1, 2, 3))
    assert 10 * np.log10(255**2 / errors.max()) > 20, "every frame is where it belongs"


def test_a_piece_of_a_film_is_encoded(tmp_path):
    whole = film(tmp_path / "whole.mp4", 4)
    target, is_copied = joined(tmp_path, [file_part(whole, 0.5, 0.25), file_part(whole)])
    assert is_copied == [False, True] and len(read_video(target)) == 6 + 33


def test_parts_of_other_sizes_and_rates_are_refused(tmp_path):
    first = file_part(film(tmp_path / "a.mp4", 1))
    small = Part(lambda: iter(()), 32, 32)
    with pytest.raises(HeliosError, match="part 2 is 32x32 and part 1 is 64x32"):
        settings_for([first, small], 24, "h264", 18)
    slow = file_part(film(tmp_path / "b.mp4", 1, replace(SETTINGS, fps=12)))
    with pytest.raises(HeliosError, match="part 2 has 12 frames per second and another part 24"):
        settings_for([first, slow], 24, "h264", 18)


@pytest.mark.parametrize(("seconds", "silent"), [(1.0, 1.0), (-0.5, 0.0), (0.0, 0.0)])
def test_sound_begins_where_it_is_asked_to(tmp_path, seconds, silent):
    tone = 0.5 * torch.sin(torch.arange(48_000) * 0.1).expand(1, 2, -1)
    audio = shifted({"waveform": tone, "sample_rate": 24_000}, seconds)
    target, _ = joined(tmp_path, [file_part(film(tmp_path / "a.mp4", 1, count=66))], audio=audio)
    with av.open(str(target)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    loud = np.flatnonzero(np.abs(sound) > 0.2)[0] / 24_000
    assert abs(loud - silent) < 0.05
    assert abs(len(sound) / 24_000 - min(2 + seconds, 66 / 24)) < 0.1


def test_an_offset_that_leaves_no_sound_is_refused():
    with pytest.raises(HeliosError, match="audio_offset=-3 cuts the whole sound off"):
        shifted({"waveform": torch.zeros(1, 1, 48_000), "sample_rate": 24_000}, -3)
