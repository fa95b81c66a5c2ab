"""A film as a live stream, read back by FFmpeg's own player of such streams."""

import io
import re
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import av
import pytest
import torch

from helios_core.errors import HeliosError
from helios_core.video.growing import GrowingVideo
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment, exact_rate
from helios_core.video.stream import _codec_text, playlist, stream_header, stream_part

SETTINGS = VideoSettings(64, 32)
FRAMES = 33


def frames(seed):
    coarse = torch.randint(0, 255, (FRAMES, 4, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("fps", [24, 23.976, 12.5, 1])
def test_ffmpeg_plays_header_and_parts_as_the_growing_film(tmp_path, codec, fps):
    settings, seconds = replace(SETTINGS, codec=codec, fps=fps), FRAMES / exact_rate(fps)
    segments = [encode_segment(frames(i), settings) for i in range(3)]
    film = GrowingVideo(tmp_path / "film.partial.mp4")
    for segment in segments:
        film.append(segment)
    film.close()
    header = stream_header(segments[0])[0]
    parts = [stream_part(segment, number, seconds) for number, segment in enumerate(segments)]
    assert b"".join([header, *parts]) == film.path.read_bytes()
    # The first chunk may be made again: another's header is as good.
    (tmp_path / "head.mp4").write_bytes(stream_header(segments[2])[0])
    for number, part in enumerate(parts):
        (tmp_path / f"{number}.m4s").write_bytes(part)
    text = playlist("head.mp4", [f"{number}.m4s" for number in range(3)], seconds, ended=True)
    (tmp_path / "stream.m3u8").write_text(text, encoding="utf-8")
    with av.open(str(tmp_path / "stream.m3u8")) as stream:
        played = list(stream.decode(video=0))
    times = [Fraction(frame.pts * frame.time_base) for frame in played]
    assert times == [index / exact_rate(fps) for index in range(3 * FRAMES)]
    shown = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in played])
    assert torch.equal(shown, read_video(film.path))


def test_playlist_grows_and_ends():
    growing = playlist("head.mp4", ["0.m4s"], Fraction(33, 24), ended=False)
    grown = playlist("head.mp4", ["0.m4s", "1.m4s"], Fraction(33, 24), ended=False)
    assert grown.startswith(growing) and "#EXT-X-PLAYLIST-TYPE:EVENT\n" in growing
    assert playlist("head.mp4", ["0.m4s", "1.m4s"], Fraction(33, 24), ended=True) == grown + "#EXT-X-ENDLIST\n"
    # No part is longer than a player is told it may be.
    longest = int(re.search(r"TARGETDURATION:(\d+)", grown)[1])
    assert longest >= max(float(text) for text in re.findall(r"EXTINF:([\d.]+)", grown))


@pytest.mark.parametrize("size", [(64, 32), (640, 384), (1920, 1080)])
def test_the_codec_is_named_as_ffmpeg_names_it(tmp_path, size):
    segment = encode_segment(torch.zeros(2, *size[::-1], 3, dtype=torch.uint8), VideoSettings(*size))
    with (
        av.open(io.BytesIO(segment)) as source,
        av.open(str(tmp_path / "x.mpd"), "w", format="dash") as dash,
    ):
        copy = dash.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                dash.mux(packet)
    (named,) = re.findall(r'codecs="(.+?)"', (tmp_path / "x.mpd").read_text(encoding="utf-8"))
    assert stream_header(segment)[1] == f'video/mp4; codecs="{named}"'


# FFmpeg names no HEVC here; these are names that RFC 6381's texts and Apple's guidelines spell out.
@pytest.mark.parametrize(
    ("record", "name"),
    [
        ("01 01 60000000 B00000000000 5D", "hvc1.1.6.L93.B0"),
        ("01 02 20000000 B00000000000 7B", "hvc1.2.4.L123.B0"),
        ("01 22 20000000 900000000000 99", "hvc1.2.4.H153.90"),
        ("01 01 60000000 000000000000 5D", "hvc1.1.6.L93"),
        ("01 44 10000000 9D0800000000 78", "hvc1.A4.8.L120.9D.8"),
    ],
)
def test_profiles_of_hevc(record, name):
    assert _codec_text(SimpleNamespace(name="hevc", extradata=bytes.fromhex(record))) == name


def test_another_codec_is_refused_in_one_sentence():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 32, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(HeliosError, match=r"coded as mpeg4, which has no live stream: choose h264 or hevc\."):
        stream_header(file.getvalue())
