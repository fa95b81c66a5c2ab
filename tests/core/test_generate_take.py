"""The command line's takes: kept, resumed, extended, and finished after a kill."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base

from helios_core.commands.cli import main
from helios_core.pipeline import HeliosPipeline
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take
from helios_core.video.reader import read_video

ORIENTATION = Base.Orientation


def generate(folder, **options):
    arguments = {"prompt": "a boat", "output": folder / "film.mp4", "width": 64, "height": 64, "take": "film"}
    arguments |= {"steps": "1 1 1", "seconds": 4, "seed": 2} | options
    words = [word for name, value in arguments.items() for word in (f"--{name}", *str(value).split(" "))]
    words[words.index("--prompt") + 1 : words.index("--output")] = [str(arguments["prompt"])]
    return main(["generate", *words])


def reused(folder):
    manifest = json.loads((folder / "helios_store" / "takes" / "film.json").read_text(encoding="utf-8"))
    return [entry["reused"] for entry in manifest["chunks"]]


def test_command_line_resumes_and_equals_the_pipeline(tmp_path, tiny_folder, capsys):
    model = tiny_folder("distilled")
    assert generate(tmp_path, model=model) == 0
    assert reused(tmp_path) == [False] * 3
    film = read_video(tmp_path / "film.mp4")
    expected = HeliosPipeline.from_pretrained(model)(
        "a boat", width=64, height=64, num_frames=99, pyramid_num_inference_steps_list=[1, 1, 1], output_type="uint8",
        generator=torch.Generator().manual_seed(2),
    ).frames[0]  # fmt: skip
    assert (film.float() - expected.float()).abs().mean() < 4
    assert generate(tmp_path, model=model, seconds=5) == 0
    assert reused(tmp_path) == [True] * 3 + [False]
    assert torch.equal(read_video(tmp_path / "film.mp4")[:99], film)
    assert generate(tmp_path, model=model, seconds=5, crf=30) == 0
    assert reused(tmp_path) == [True] * 4
    assert generate(tmp_path, model=model, prompt="a fire") == 0
    assert reused(tmp_path) == [False] * 3

    assert main(["store", "--folder", str(tmp_path / "helios_store")]) == 0
    assert "film: 3 chunks in" in capsys.readouterr().out
    assert main(["store", "--folder", str(tmp_path / "helios_store"), "--clear"]) == 0
    assert not list((tmp_path / "helios_store").glob("*.*"))


def test_an_end_image_is_the_pipelines(tmp_path, tiny_folder, capsys):
    """By the chunks' keys, and against the film without it: a picture that a camera held sideways marks as turned."""
    model, picture = tiny_folder("distilled"), tmp_path / "end.png"
    pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)).numpy()
    turned = Image.Exif()
    turned[ORIENTATION] = 6  # to be turned clockwise
    Image.fromarray(pixels).rotate(90).save(picture, exif=turned)
    assert generate(tmp_path, model=model) == 0
    assert generate(tmp_path, model=model, **{"end-image": picture, "end-chunks": 2, "end-strength": 0.9}) == 0
    assert reused(tmp_path) == [True, False, False], "the first of three chunks is not guided"
    stream = HeliosPipeline.from_pretrained(model).stream(
        "a boat", width=64, height=64, num_frames=99, pyramid_num_inference_steps_list=[1, 1, 1],
        generator=torch.Generator().manual_seed(2), end_image=Image.fromarray(pixels), end_chunks=2, end_strength=0.9,
        output_type="latent", take=Take(ChunkStore(tmp_path / "helios_store"), "pipeline", {}),
    )  # fmt: skip
    assert all(chunk.reused for chunk in stream)
    capsys.readouterr()
    for name, value, message in (
        ("end-image", tmp_path / "nowhere.png", "error: --end-image '.*cannot be read"),
        ("end-strength", 1.5, "error: strength=1.5 must be from 0"),
        ("end-chunks", 0, "error: guided_chunks=0 must be from 1"),
    ):
        # Before anything loads: there is no such model.
        options = {"end-image": picture, name: value, "output": tmp_path / "other" / "film.mp4"}
        assert generate(tmp_path, model=tmp_path / "nothing", **options) == 2
        assert re.match(message, capsys.readouterr().err)


@pytest.mark.slow
def test_command_line_killed_goes_on(tmp_path, tiny_folder):
    """SIGKILL in a child process, then the same command: the film of an uninterrupted run, no chunk made twice."""
    model, folder = tiny_folder("distilled"), tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-m", "helios_core", "generate", "--prompt", "a boat", "--width", "64", "--height", "64"]
    command += ["--model", str(model), "--steps", "1", "1", "1", "--seconds", "8", "--seed", "2"]
    with subprocess.Popen([*command, "--output", str(folder / "film.mp4")], stderr=subprocess.DEVNULL) as process:
        while len(list(folder.glob("helios_store/*.chunk.safetensors"))) < 2:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    made = {path: path.read_bytes() for path in folder.glob("helios_store/*.chunk.safetensors")}
    assert 2 <= len(made) < 6
    generate(folder, model=model, seconds=8)
    assert reused(folder) == [True] * len(made) + [False] * (6 - len(made))
    assert all(path.read_bytes() == content for path, content in made.items())
    whole = tmp_path / "whole"
    whole.mkdir()
    generate(whole, model=model, seconds=8)
    assert torch.equal(read_video(folder / "film.mp4"), read_video(whole / "film.mp4"))
