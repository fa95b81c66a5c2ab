"""HeliosBench's runner: its prompts, its motion figure by definition, its table by hand, and a run that goes on."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")

import cv2

from helios_core.commands import bench
from helios_core.commands.cli import main
from helios_core.errors import HeliosError
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment

HEADER = "id,prompt,duration\n"


def prompts(folder, text):
    path = folder / "prompts.csv"
    path.write_text(HEADER + text)
    return path


def test_rows_by_length(tmp_path):
    path = prompts(tmp_path, '1,"a boat, red",81\n2,rain,33\n3,snow,33\n4,fog,240\n')
    assert [(row.name, row.frames) for row in bench.read_rows(path)] == [("2", 33), ("3", 33), ("1", 81), ("4", 240)]
    (boat, fog) = bench.read_rows(path, lengths=[240, 81])
    assert (boat.prompt, fog.name) == ("a boat, red", "4")
    assert [row.name for row in bench.read_rows(path, limit=1)] == ["2", "1", "4"]


@pytest.mark.parametrize(
    "text", ["../1,a boat,81\n", "1,,81\n", "1,a boat,0\n", "1,a boat,-3\n", "1,a boat\n", f"1,a boat,{'9' * 30}\n"]
)
def test_bad_rows_are_named(tmp_path, text):
    with pytest.raises(HeliosError, match=r"has the row .*; each needs an id"):
        bench.read_rows(prompts(tmp_path, text))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(HeliosError, match="cannot be read"):
        bench.read_rows(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00" * 99)
    with pytest.raises(HeliosError, match="cannot be read"):
        bench.read_rows(tmp_path / "binary.csv")
    with pytest.raises(HeliosError, match=r"has no row of the lengths \[7\]"):
        bench.read_rows(prompts(tmp_path, "1,a boat,81\n"), lengths=[7])


def pan(path, speed):
    still = cv2.GaussianBlur(np.random.default_rng(3).standard_normal((96, 160, 1)), (0, 0), 3)[..., None]
    still = np.clip(128 + 50 * still / still.std(), 0, 255).astype(np.uint8).repeat(3, axis=2)
    frames = np.stack([np.roll(still, speed(i), axis=1) for i in range(9)])
    path.write_bytes(encode_segment(torch.from_numpy(frames), VideoSettings(160, 96)))
    return path


def test_motion_amplitude_is_helios_benchs(tmp_path):
    """Its code, step by step: maps averaged to 16 pixels wide, over frames, over the map, both directions together."""
    path = pan(tmp_path / "pan.mp4", lambda i: 2 * i)
    greys = [cv2.cvtColor(frame.numpy(), cv2.COLOR_RGB2GRAY) for frame in read_video(path)]
    maps = [cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(greys)]
    small = [cv2.resize(flow, (16, int(96 * 16 / 160)), interpolation=cv2.INTER_AREA) for flow in maps]
    assert bench.motion_amplitude(path) == pytest.approx(abs(np.mean(small)), rel=0.02)
    assert bench.motion_amplitude(path) == pytest.approx(1, rel=0.2), "2 pixels across and none down"
    there_and_back = pan(tmp_path / "back.mp4", lambda i: 2 * min(i, 8 - i))
    assert bench.motion_amplitude(there_and_back) < 0.1, "signs cancel, as they do in HeliosBench"


def test_table_by_hand():
    films = [
        {"frames": 81, "fps": 2.0, "motion_amplitude": 0.2, "drift_luma": 0.1},
        {"frames": 81, "fps": 6.0, "motion_amplitude": 0.4, "drift_luma": None},
        {"frames": 240, "fps": None, "motion_amplitude": 0.5},
    ]
    first, second, *published = bench.table("Helios tiny", films)
    assert (first["films"], first["fps"], first["rating"]) == (2, 4.0, 2)
    assert first["motion_amplitude"] == pytest.approx(0.3) and first["drift_luma"] == 0.1
    assert (second["frames"], second["fps"], second["rating"], second["drift_luma"]) == (240, None, None, None)
    assert all(line["source"].startswith("published") for line in published)
    assert {line["name"]: line["rating"] for line in published}["Helios-Distilled"] == 7  # ceil(19.53 / 3.2)
    totals = {line["name"]: line["long_total"] for line in published if line["long_total"] is not None}
    assert totals == {"Helios-Distilled": 6.94, "Reward Forcing": 6.88, "Helios-Base": 6.57}
    lines = bench.as_markdown([first, published[3]]).splitlines()
    assert len(lines) == 4 and "| Helios tiny | 81 | 2 | 4 | 2 |  | 0.3 | 0.1 |" in lines[2]
    assert lines[3].startswith("| Helios-Distilled |  |  | 19.53 | 7 | 6.94 |") and "published" in lines[3]
    (row,) = csv.DictReader(bench.as_csv([first]).splitlines())
    assert row["fps"] == "4" and row["drift_hue"] == ""


def test_a_run_is_kept_and_goes_on(tiny_folder, tmp_path, capsys):
    path, output = prompts(tmp_path, "1,a boat,33\n2,rain,33\n"), tmp_path / "bench"
    arguments = ["bench", "--model", str(tiny_folder("distilled")), "--prompts", str(path), "--output", str(output),
                 "--width", "64", "--height", "64", "--steps", "1", "1", "1"]  # fmt: skip
    assert main([*arguments, "--limit", "1"]) == 0
    film = output / "1_33.mp4"
    before = film.stat().st_mtime_ns
    first = json.loads((output / "results.jsonl").read_text())
    assert len(read_video(film)) == 66 // 2 and first["fps"] > 0 and first["motion_amplitude"] > 0
    # As after a kill while a result was being written.
    with (output / "results.jsonl").open("a") as file:
        file.write('{"id": "2", "fra\n')
    assert main(arguments) == 0
    assert film.stat().st_mtime_ns == before, "what was measured is not made again"
    assert (output / "2_33.mp4").is_file()
    (measured, *_) = list(csv.DictReader((output / "table.csv").open()))
    assert (measured["name"], measured["films"], measured["source"]) == ("Helios distilled", "2", "measured here")
    said = capsys.readouterr().out
    assert "| Helios distilled | 33 | 2 |" in said and "| Helios-Base |" in said
    other = bench.known_results(output / "results.jsonl", {**first["settings"], "seed": 1})
    assert other == {}, "other settings are another benchmark"
