"""Helios Drift Report in a real ComfyUI: a file, a part of it, and frames, against the library's report."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from helios_comfy_graphs import node

from helios_core.video.drift.report import report_file
from helios_core.video.segments import VideoSettings, encode_segment
from helios_setup.errors import PromptRejectedError
from helios_setup.server import output_files

FRAMES, CHUNK = 80, 20


@pytest.fixture(scope="module")
def clip(comfy):
    """A texture that moves and grows darker, under the name that Load Video lists."""
    path = comfy.log_file.parent / "input" / "darker.mp4"
    still = np.random.default_rng(3).uniform(90, 200, (8, 12, 1)).repeat(8, 0).repeat(8, 1) * [1, 0.9, 0.8]
    frames = np.stack([np.roll(still - 30 * i / FRAMES, i, axis=1).astype(np.uint8) for i in range(FRAMES)])
    path.write_bytes(encode_segment(torch.from_numpy(frames), VideoSettings(96, 64)))
    return path


def reported(comfy, source, **inputs):
    graph = {
        "load": node("LoadVideo", file="darker.mp4"),
        "parts": node("GetVideoComponents", video=["load", 0]),
        "slice": node("Video Slice", video=["load", 0], start_time=0.5, duration=1.25, strict_duration=False),
        "drift": node("HeliosDriftReport", video=source, chunk_frames=CHUNK, prompt_changes="2", **inputs),
        "json": node("PreviewAny", source=["drift", 1]),
        "text": node("PreviewAny", source=["drift", 2]),
        "plot": node("SaveImage", images=["drift", 0], filename_prefix="drift"),
    }
    entry = comfy.run(graph)
    said = {name: entry["outputs"][name]["text"][0] for name in ("json", "text")}
    assert entry["outputs"]["drift"]["images"]
    return json.loads(said["json"]), said["text"], output_files(entry, comfy.log_file.parent / "output")


def test_a_file_is_reported_as_by_the_library(comfy, clip):
    found, text, files = reported(comfy, ["load", 0])
    expected = report_file(clip, clip.name, CHUNK, (2,))
    assert found == expected.as_dict() and text == expected.text()
    assert found["faults"] == ["luma"] and len(found["chunks"]["luma"]) == FRAMES // CHUNK
    assert any(file.name.startswith("drift") for file in files)


def test_frames_and_a_part_of_a_file(comfy, clip):
    whole, part = (reported(comfy, source)[0] for source in (["parts", 0], ["slice", 0]))
    expected = report_file(clip, clip.name, CHUNK).as_dict()
    assert whole["frames"] == FRAMES and part["frames"] == 30
    for name, values in expected["chunks"].items():
        # Core spreads the coarser colour over the picture in its own way, which changes fine detail.
        close = {"hue": 1.5, "seam": 0.2}.get(name, 0.02)
        assert whole["chunks"][name][1:] == pytest.approx(values[1:], abs=close, rel=0.1), name
    # From the twelfth frame on: its first chunk lies over the clip's first two.
    luma = expected["chunks"]["luma"]
    assert luma[0] > part["chunks"]["luma"][0] > luma[1]


@pytest.mark.parametrize("changes", ["x", "1.5", "-1", "7; 14", "99999"])
def test_bad_prompt_changes_are_refused_before_anything_runs(comfy, clip, changes):
    graph = {
        "load": node("LoadVideo", file="darker.mp4"),
        "drift": node("HeliosDriftReport", video=["load", 0], chunk_frames=33, prompt_changes=changes),
    }
    with pytest.raises(PromptRejectedError, match=r"prompt_changes has .*, no chunk; list chunk numbers like '7, 14'"):
        comfy.run(graph)
