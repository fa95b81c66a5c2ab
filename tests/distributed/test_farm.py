"""The farm on a real Ray cluster of this machine: films equal one process', whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from helios_core.commands.cli import main
from helios_core.commands.renderer import PipelineRenderer, model_size
from helios_core.distributed.farm_worker import FarmFolder, FilmWorker, code_version
from helios_core.distributed.jobs import read_jobs, read_table
from helios_core.take.store import CHUNK_SUFFIX, ChunkStore

PROMPTS = ("a boat, red", "rain", "snow on a roof")
CHUNKS = 2
HELIOSBENCH = Path(__file__).resolve().parents[3] / "shared" / "prompts" / "heliosbench.csv"


def table(folder: Path, *rows: dict) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(model: Path, prompts: Sequence[str]) -> list[dict]:
    usual = {"model": str(model), "width": 64, "height": 64, "chunks": CHUNKS, "steps": [1, 1, 1]}
    return [{"id": f"film {i}", "prompt": prompt, "seed": i, **usual} for i, prompt in enumerate(prompts)]


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def of(kind: str, told: list[dict]) -> list[dict]:
    return [event for event in told if event["event"] == kind]


def one_process(folder: Path, jobs: Path) -> FarmFolder:
    """The same films one after the other, without Ray."""
    made = FarmFolder(folder / "one", folder / "one" / "store")
    made.output.mkdir()
    worker = FilmWorker(PipelineRenderer({}), code_version())
    outcomes = [worker.render(job, made) for job in read_jobs(jobs, {}, model_size)]
    assert [outcome.message for outcome in outcomes] == [""] * len(outcomes)
    return made


class Killer(threading.Thread):
    """Kills one worker, or another actor, in the middle of a chunk: after a film's first chunk is kept."""

    def __init__(self, store: Path, actor: str = "FilmWorker"):
        super().__init__(daemon=True)
        self._store, self._name, self.killed, self.kept = store, f"ray::{actor}".encode(), 0, {}

    def run(self):
        while not self.killed:
            time.sleep(0.01)
            for take in self._store.glob("takes/*.json"):
                manifest = json.loads(take.read_text())
                if manifest["status"] == "running" and len(manifest["chunks"]) == 1:
                    self.kept = {path: path.stat().st_ino for path in self._store.glob("*.chunk.safetensors")}
                    self.killed = self._worker()
                    if self.killed:
                        os.kill(self.killed, signal.SIGKILL)
                    break

    def _worker(self) -> int:
        """One of the processes that Ray named after their class; all have a film."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes().startswith(self._name):
                    return int(process.name)
            except OSError:
                continue
        return 0


def check_a_killed_worker(cluster, folder: Path, wanted: list[dict], capsys) -> None:
    """Films of two workers, one of which is killed: all are there, as one process makes them, and no chunk twice."""
    jobs, output = table(folder, *wanted), folder / "films"
    killer = Killer(output / "helios_store")
    killer.start()
    command = ["farm", str(jobs), "--output", str(output), "--workers", "2", "--address", cluster.address, "--json"]
    assert main(command) == 0
    told = events(capsys.readouterr().out)
    assert killer.killed
    assert {event["id"] for event in of("film", told)} == {row["id"] for row in wanted}
    assert all(path.stat().st_ino == inode for path, inode in killer.kept.items()), "what was kept is not made again"
    sampled = [(event["id"], event["chunk"]) for event in of("chunk", told) if not event["reused"]]
    assert len(sampled) == len(set(sampled)) and len(sampled) <= len(wanted) * CHUNKS
    chunks = list((output / "helios_store").glob("*.chunk.safetensors"))
    assert len(chunks) == len(wanted) * CHUNKS
    made = one_process(folder, jobs)
    for row in wanted:
        film = f"{row['id']}.mp4"
        assert (output / film).read_bytes() == (made.output / film).read_bytes()
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")], "nothing is left over"


def test_a_killed_worker_costs_the_chunk_at_work(ray_cluster, tiny_folder, tmp_path, capsys):
    check_a_killed_worker(ray_cluster, tmp_path, rows(tiny_folder("distilled"), PROMPTS), capsys)


# A lost process ends its crew in test_crew.py, a lost worker is replaced above; both together take half a minute.
@pytest.mark.slow
@pytest.mark.parametrize("lost", ["Member", "FilmWorker"])
def test_a_film_of_two_processes_of_which_one_is_killed(ray_cluster, tiny_folder, tmp_path, capsys, lost):
    """Whichever it is, both are started again: latents are one process' to 1e-5, and no chunk is made twice."""
    jobs, output = table(tmp_path, *rows(tiny_folder("distilled"), PROMPTS[:1])), tmp_path / "films"
    killer = Killer(output / "helios_store", lost)
    killer.start()
    command = ["farm", str(jobs), "--output", str(output), "--gpus-per-film", "2", "--address", ray_cluster.address]
    assert main([*command, "--json"]) == 0
    told = events(capsys.readouterr().out)
    assert killer.killed
    assert all(path.stat().st_ino == inode for path, inode in killer.kept.items()), "what was kept is not made again"
    (film,) = of("film", told)
    assert film["chunks"] == CHUNKS > film["sampled"], "a new worker found the first one"
    check_latents(one_process(tmp_path, jobs).store, output / "helios_store", chunks=CHUNKS)


def check_latents(*stores: Path, chunks: int) -> None:
    """The chunks of both are the same to 1e-5 of their spread."""
    alone, together = map(ChunkStore, stores)
    assert [len(list(store.folder.glob(f"*{CHUNK_SUFFIX}"))) for store in (alone, together)] == [chunks] * 2
    for path in alone.folder.glob(f"*{CHUNK_SUFFIX}"):
        expected, made = (store.get_chunk(path.name.removesuffix(CHUNK_SUFFIX)) for store in (alone, together))
        assert (made.latents - expected.latents).abs().max() <= 1e-5 * expected.latents.std()


@pytest.mark.slow
def test_two_processes_change_models(ray_cluster, tiny_folder, tmp_path, capsys):
    """A model that cannot be read is told for its film alone; the processes then load the next one."""
    broken = shutil.copytree(tiny_folder("distilled"), tmp_path / "broken")
    for weights in (broken / "transformer").glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    films = [row for model in (broken, tiny_folder("mid")) for row in rows(model, PROMPTS[:1])]
    films = [{**row, "id": f"film {i}", "guidance": 2} for i, row in enumerate(films)]
    jobs, output = table(tmp_path, *films), tmp_path / "films"
    command = ["farm", str(jobs), "--output", str(output), "--gpus-per-film", "2", "--cfg-parallel", "--json"]
    assert main([*command, "--address", ray_cluster.address]) == 2
    ended = {film["id"]: film for film in of("film", events(capsys.readouterr().out))}
    assert ended["film 0"]["status"] == "failed" and "safetensors" in ended["film 0"]["message"]
    assert ended["film 1"]["status"] == "finished", ended
    check_latents(one_process(tmp_path, table(tmp_path, films[1])).store, output / "helios_store", chunks=CHUNKS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus-per-film", "0"], "--gpus-per-film 0 must be at least 1"),
        (["--gpus-per-film", "3", "--cfg-parallel"], "needs an even number of processes, not 3"),
        (["--gpus-per-film", "3"], "--gpus-per-film 3 is more than a machine has; give at most 2."),
        (
            ["--gpus-per-film", "2", "--cpus", "2"],
            "--cpus 2 is more than a machine of the cluster has; give at most 1.",
        ),
    ],
)
def test_more_than_a_machine_has(ray_cluster, tiny_folder, tmp_path, capsys, options, words):
    jobs = table(tmp_path, *rows(tiny_folder("distilled"), PROMPTS[:1]))
    command = ["farm", str(jobs), "--output", str(tmp_path / "films"), "--address", ray_cluster.address]
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not HELIOSBENCH.is_file(), reason="HeliosBench's prompts are not beside the checkout")
def test_eight_films_of_heliosbench(ray_cluster, tiny_folder, tmp_path, capsys):
    prompts = [row["prompt"] for row in read_table(HELIOSBENCH)[:8]]
    check_a_killed_worker(ray_cluster, tmp_path, rows(tiny_folder("distilled"), prompts), capsys)
