"""A film directed from Python, and from the command line's standard input."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from PIL import Image

from helios_core.commands.cli import main
from helios_core.commands.live import read_line
from helios_core.errors import HeliosError
from helios_core.pipeline import HeliosPipeline
from helios_core.take.directions import Direction
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take
from helios_core.video.reader import read_video

SIZE = {"width": 64, "height": 64, "pyramid_num_inference_steps_list": [1, 1, 1]}


def test_a_film_directed_from_python_and_the_same_from_its_texts(tmp_path, tiny_folder):
    pipe, told = HeliosPipeline.from_pretrained(tiny_folder("distilled")), []
    film = pipe.live("a boat", tmp_path / "film.mp4", max_chunks=3, tell=told.append, **SIZE)
    assert film.prompt("rain", chunk=1, blend=2).chunk == 1
    assert film.prompt("snow", chunk=2).number == 2 and film.undo().chunk == 2
    assert film.second_of(1) == 1.375
    with film:
        assert film.wait(120)
    assert film.schedule == "0: a boat\n1~2: rain" and film.history.chunk == 3
    frames = read_video(film.path)
    assert len(frames) == 99 and [line.split(",")[0] for line in told[:3]] == ["chunk 0", "chunk 1", "chunk 2"]

    # Goes on with what was said, and then with what is said now.
    longer = pipe.live("a boat", tmp_path / "film.mp4", max_chunks=4, **SIZE)
    with pytest.raises(HeliosError, match="chunk=1 has begun already; name chunk 3"):
        longer.prompt("sun", chunk=1)
    rolled = longer.roll(2, seed=9)
    with longer:
        longer.wait(120)
    assert (rolled.number, longer.seed_changes, longer.schedule) == (4, "2: 9", film.schedule)
    longest = read_video(longer.path)
    assert torch.equal(longest[:66], frames[:66]) and not torch.equal(longest[66:99], frames[66:])

    take = Take(ChunkStore(tmp_path / "helios_store"), "again", {})
    said = {"prompt_schedule": longer.schedule, "seed_changes": longer.seed_changes}
    chunks = list(pipe.stream(num_frames=4 * 33, take=take, output_type="latent", **said, **SIZE))
    assert [chunk.reused for chunk in chunks] == [True] * 4


def test_leaving_the_block_ends_the_film(tmp_path, tiny_folder):
    pipe = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    with pipe.live("a boat", tmp_path / "film.mp4", **SIZE) as film:
        film.anchor(tmp_path / "red.png")
        with pytest.raises(HeliosError, match="cannot be read"):
            film.anchor(tmp_path / "none.png")
    assert len(read_video(film.path)) >= 33
    with pytest.raises(HeliosError, match="has ended"):
        film.pause()
    with pytest.raises(HeliosError, match="text is empty"):
        pipe.live(" ", tmp_path / "film.mp4", **SIZE)


def test_what_fails_while_it_is_made_is_raised_and_the_rest_is_kept(tmp_path, tiny_folder, monkeypatch):
    pipe = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    film = pipe.live("a boat", tmp_path / "film.mp4", max_chunks=3, **SIZE)
    film.prompt("rain", chunk=1)

    def fails(_):
        raise HeliosError("the text encoder failed.")

    monkeypatch.setattr(pipe, "_text_encoder", fails)
    with pytest.raises((HeliosError, TypeError)), film:
        film.wait(120)
    assert len(read_video(tmp_path / "film.mp4")) == 33


def test_the_command_line_reads_directions(tmp_path, tiny_folder, monkeypatch, capsys):
    command = ["live", "--prompt", "a boat", "--model", str(tiny_folder("distilled")), "--max-chunks", "3"]
    command += ["--width", "64", "--height", "64", "--steps", "1", "1", "1", "--output", str(tmp_path / "film.mp4")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("/at 2 rain\n\n/dance\n/roll 900\n/at 2 snow\n/undo\n"))
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "prompt: chunk 2, at 2.8 s" in shown.out and "0: a boat\n2~0: rain\n" in shown.out
    assert "'/dance' is no direction" in shown.err and "chunk=900 has not begun" in shown.err
    assert len(read_video(tmp_path / "film.mp4")) == 3 * 33
    manifest = json.loads((tmp_path / "helios_store" / "takes" / "film.json").read_text(encoding="utf-8"))
    assert [direction["do"] for direction in manifest["directions"]] == ["prompt", "prompt", "undo"]


@pytest.mark.parametrize(
    ("line", "direction"),
    [
        ("a fox\n", Direction("prompt", text="a fox")),
        ("/at 7 a fox: red", Direction("prompt", text="a fox: red", chunk=7)),
        ("/roll 5", Direction("roll", chunk=5)),
        ("/roll 5 12", Direction("roll", chunk=5, seed=12)),
        ("/anchor my picture.png", Direction("anchor", image="my picture.png")),
        ("/pause", Direction("pause")),
        ("/stop", Direction("stop")),
    ],
)
def test_lines(line, direction):
    assert read_line(line) == direction


@pytest.mark.parametrize("line", ["/", "/at", "/at seven a fox", "/roll", "/roll x", "/pause now", "/anchor"])
def test_lines_that_are_no_directions(line):
    with pytest.raises(HeliosError, match="is no direction"):
        read_line(line)
