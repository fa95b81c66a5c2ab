"""Helios Join Videos: frames and rendered films as one file."""

from pathlib import Path

import av
from helios_comfy_graphs import film, node
from helios_comfy_one_chunk import refused

from helios_setup.server import output_files


def coded(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def joined_film(prefix: str, **more) -> dict:
    """A clip of 5 frames, then a rendered film of one chunk."""
    graph = film(f"{prefix}/film", chunks=1, seed=901)
    graph["opening"] = node("EmptyImage", width=64, height=64, batch_size=5, color=0x336699)
    parts = {"parts.part_0": ["opening", 0], "parts.part_1": ["render", 0]}
    graph["join"] = node("HeliosJoinVideos", **parts, filename_prefix=f"{prefix}/all", **more)
    return graph


def test_a_clip_and_a_rendered_film_become_one_file(comfy):
    graph = joined_film("joined", audio=["sound", 0], audio_offset=0.5)
    graph["sound"] = node("EmptyAudio", duration=60.0, sample_rate=44_100, channels=2)
    entry = comfy.run(graph)
    files = {path.stem.split("_")[0]: path for path in output_files(entry, comfy.log_file.parent / "output")}
    assert coded(files["all"])[5:] == coded(files["film"]), "the film is copied, not encoded again"
    with av.open(str(files["all"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5 + 33
        assert container.streams.audio and "prompt" in container.metadata
        assert abs(float(container.duration) / av.time_base - 38 / 24) < 0.05
    assert not list(files["all"].parent.glob(".*")), "nothing unfinished stays behind"


def test_parts_that_do_not_fit_and_names_outside_are_refused(comfy):
    graph = joined_film("refused")
    graph["opening"]["inputs"]["width"] = 32
    assert "part 2 is 64x64 and part 1 is 32x64; scale one" in refused(comfy, graph)
    assert "is not a name within the output folder" in refused(comfy, joined_film("../outside"))
