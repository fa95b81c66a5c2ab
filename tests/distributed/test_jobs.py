"""A farm's table: read, refused in a sentence, and what was made is not made again."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from helios_core.commands import farm
from helios_core.commands.cli import main
from helios_core.commands.renderer import PipelineRenderer, model_size
from helios_core.distributed.farm_worker import FarmFolder, FilmWorker, code_version
from helios_core.distributed.jobs import BadRow, Job, read_jobs
from helios_core.errors import HeliosError

HELIOSBENCH = Path(__file__).resolve().parents[3] / "shared" / "prompts" / "heliosbench.csv"
DEFAULTS = {"model": "helios-tiny-distilled", "chunks": "3"}


def read(folder: Path, text: str, name: str = "jobs.csv") -> list[Job | BadRow]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_jobs(folder / name, DEFAULTS, model_size)


def test_rows_of_csv_and_of_json_lines(tmp_path):
    table = 'id,prompt,prompt_schedule,duration,seed,steps,image\nsea,"a boat, red",,240,7,2 2 1,sea.png\n'
    table += "storm,,0: a boat / 7: a storm,,,,\n,rain,,,,,\n"
    sea, storm, rain = read(tmp_path, table)
    assert (sea.rows, sea.frames, sea.chunks, sea.seed, sea.steps) == (((0, "a boat, red"),), 240, 8, 7, (2, 2, 1))
    assert sea.image == str(tmp_path / "sea.png") and (sea.width, sea.height) == (320, 192)
    assert storm.rows == ((0, "a boat"), (7, "a storm")) and storm.chunks == 3
    assert (rain.id, rain.seed) == ("0003", 0)
    lines = [{"id": "sea", "prompt": "a boat, red", "duration": 240, "seed": 7, "steps": [2, 2, 1], "image": "sea.png"}]
    assert read(tmp_path, json.dumps(lines[0]) + "\n\n", "jobs.jsonl") == [sea]


@pytest.mark.skipif(not HELIOSBENCH.is_file(), reason="HeliosBench's prompts are not beside the checkout")
def test_heliosbench_is_a_table_as_it_is():
    jobs = read_jobs(HELIOSBENCH, DEFAULTS, model_size)
    assert len(jobs) == 240 and all(isinstance(job, Job) for job in jobs)
    assert {job.frames for job in jobs} == {120, 240, 720, 1440}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,,", "it has no prompt"),
        ("../a,boat,", "take '../a' is not a usable name"),
        ("a,boat,seven", "seed='seven' is no whole number"),
        ("a,boat,-1", "seed='-1' is no whole number"),
        (f"a,boat,{2**64}", "must be 0 to"),
        ("a,boat,1,2", "more cells than there are columns"),
    ],
)
def test_a_bad_row_is_named_and_the_others_stay(tmp_path, row, message):
    bad, good = read(tmp_path, f"id,prompt,seed\n{row}\nb,rain,1\n")
    assert isinstance(bad, BadRow) and message in bad.message and bad.message.count(". ") == 0
    assert isinstance(good, Job) and good.id == "b"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,seed\na,1\n", "has no row with a prompt"),
        ("id,prompt,sead\na,boat,1\n", "the column 'sead', which is unknown"),
        ("", "has no row with a prompt"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, table, message):
    with pytest.raises(HeliosError, match=message):
        read(tmp_path, table)
    with pytest.raises(HeliosError, match="is no file"):
        read_jobs(tmp_path / "nowhere.csv", DEFAULTS, model_size)


def test_odd_cells_of_json_lines(tmp_path):
    rows = [{"prompt": "a\u2028boat"}, {"prompt": "x", "seconds": 1e308, "fps": 60}, {"prompt": "x", "image": "a\0b"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    boat, endless, nul = read(tmp_path, text, "jobs.jsonl")
    assert isinstance(boat, Job) and boat.rows == ((0, "a\u2028boat"),), "a line of its own to Unicode, not to JSON"
    assert isinstance(endless, BadRow) and "seconds" in endless.message
    assert isinstance(nul, BadRow) and "is no path" in nul.message
    (long,) = read(tmp_path, json.dumps({"prompt": "x", "image": 300 * "x"}) + "\n", "long.jsonl")
    with pytest.raises(HeliosError, match="is no file"):
        long.check_media()


def test_two_rows_of_one_id_and_lengths_that_disagree(tmp_path):
    first, second = read(tmp_path, "id,prompt\na,boat\na,rain\n")
    assert isinstance(first, Job) and second == BadRow("row 2", "its id a is row 1's too; give each row its own.")
    (both,) = read(tmp_path, "prompt,seconds,duration\nboat,3,99\n")
    assert isinstance(both, BadRow) and "duration and seconds are both given" in both.message


def test_equal_films_have_equal_keys(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "same.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "other.png")
    table = (
        "id,prompt,image,seed\n1,boat,a.png,0\n2,boat,same.png,0\n3,boat,other.png,0\n4,boat,a.png,1\n5,sea,a.png,0\n"
    )
    keys = [job.key("model") for job in read(tmp_path, table)]
    assert keys[0] == keys[1] and len(set(keys)) == 4
    assert read(tmp_path, table)[0].key("another model") != keys[0]


@pytest.fixture
def here(monkeypatch):
    """The farm's loop without Ray: one worker, in this process. Counts the chunks that it samples."""
    sampled = []

    def run(jobs, renderer, folder, _cluster, _tell):
        worker = FilmWorker(renderer, code_version())
        for job in jobs:
            sampled.append(worker.render(job, folder))
            yield sampled[-1]

    monkeypatch.setattr(farm, "run_farm", run)
    monkeypatch.setattr(farm, "require_ray", lambda: None)
    return sampled


def run(folder: Path, table: str, model: Path) -> int:
    (folder / "jobs.csv").write_text(table)
    command = ["farm", str(folder / "jobs.csv"), "--output", str(folder / "films"), "--model", str(model), "--json"]
    return main([*command, "--chunks", "1", "--steps", "1 1 1", "--width", "64", "--height", "64"])


def test_a_second_run_does_nothing_and_a_changed_row_is_made_alone(here, tiny_folder, tmp_path, capsys):
    model = tiny_folder("distilled")
    Image.new("RGB", (90, 70), "red").save(tmp_path / "a.png")
    table = "id,prompt,seed,image\na,boat,1,\nb,rain,2,a.png\n"
    assert run(tmp_path, table, model) == 0
    assert [(outcome.id, outcome.sampled) for outcome in here] == [("a", 1), ("b", 1)]
    with (tmp_path / "films" / "farm.jsonl").open("a") as file:
        file.write('{"id": "a", "sta')  # as a kill leaves it
    assert run(tmp_path, table, model) == 0 and len(here) == 2
    assert '"films": 0, "there": 2' in capsys.readouterr().out
    assert run(tmp_path, table.replace("boat", "ship"), model) == 0
    assert [outcome.id for outcome in here[2:]] == ["a"]
    assert run(tmp_path, table.replace("boat", "ship"), model) == 0 and len(here) == 3
    (tmp_path / "films" / "b.mp4").unlink()
    assert run(tmp_path, table.replace("boat", "ship"), model) == 0
    assert [(outcome.id, outcome.sampled) for outcome in here[3:]] == [("b", 0)], "the store has its chunk"


def test_what_goes_wrong_is_named_and_the_other_films_are_made(here, tiny_folder, tmp_path, capsys):
    table = "id,prompt,image,model,width\na,boat,nowhere.png,,\nb,rain,,no-model,\nc,fog,,,70\nd,snow,,,\n"
    assert run(tmp_path, table, tiny_folder("distilled")) == 2
    told, said = capsys.readouterr()
    assert (tmp_path / "films" / "d.mp4").is_file()
    assert f"a: image {tmp_path / 'nowhere.png'} is no file; check its path" in told
    assert "model 'no-model' is neither a folder on this machine nor in its hub cache; give" in told
    assert "c: width=70 is not a positive multiple of 64; use 64 or 128." in told
    assert "error: 3 of 4 films were not made" in said and len(here) == 2
    lines = [json.loads(line) for line in (tmp_path / "films" / "farm.jsonl").read_text().splitlines()]
    assert {line["id"]: line["status"] for line in lines} == {"b": "failed", "d": "finished"}


def test_a_full_disk_of_a_worker_is_named(tiny_folder, tmp_path, monkeypatch):
    job = Job("a", ((0, "boat"),), str(tiny_folder("distilled")), 64, 64, 33, steps=(1, 1, 1))
    folder = FarmFolder(tmp_path, tmp_path / "store")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    worker = FilmWorker(PipelineRenderer({}), code_version())
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        outcome = worker.render(job, folder)
    assert outcome.status == "failed" and "No space left on device" in outcome.message
    assert worker.render(job, folder).status == "finished"


def test_a_disk_that_is_full_for_one_film_leaves_the_others(here, tiny_folder, tmp_path, monkeypatch, capsys):
    model, table, store = tiny_folder("distilled"), "id,prompt,seed\na,boat,1\nb,rain,2\n", []

    def full(descriptor):
        if not here:  # no film has ended: a is at work
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        store.append(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        assert run(tmp_path, table, model) == 2
    said = capsys.readouterr()
    assert "No space left on device" in said.out and "1 of 2 films were not made" in said.err
    assert [outcome.status for outcome in here] == ["failed", "finished"] and store
    assert run(tmp_path, table, model) == 0
    assert [outcome.id for outcome in here[2:]] == ["a"], "the second run makes what is missing"


def test_another_version_is_refused_by_name():
    with pytest.raises(HeliosError, match=r"worker \S+:\d+ runs another version of the pack \(\w+, here 0123\)"):
        FilmWorker(PipelineRenderer({}), "0123")


def test_without_ray_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    (tmp_path / "jobs.csv").write_text("prompt\nboat\n")
    assert main(["farm", str(tmp_path / "jobs.csv"), "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == 'error: the farm needs Ray, which is not installed; run pip install "ray[serve]".\n'
