"""The farm on a real Ray cluster of this machine: films equal one process', whatever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

from helios_core.commands.cli import main
from helios_core.commands.renderer import PipelineRenderer, model_size
from helios_core.distributed.farm_worker import FarmFolder, FilmWorker, code_version
from helios_core.distributed.jobs import read_jobs

PROMPTS = ("a boat, red", "rain", "snow on a roof")
CHUNKS = 2


def table(folder: Path, *rows: dict) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(model: Path, **more) -> list[dict]:
    usual = {"model": str(model), "width": 64, "height": 64, "chunks": CHUNKS, "steps": [1, 1, 1], **more}
    return [{"id": f"film {i}", "prompt": prompt, "seed": i, **usual} for i, prompt in enumerate(PROMPTS)]


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
    """Kills one worker in the middle of a chunk: after a film's first chunk is kept."""

    def __init__(self, store: Path):
        super().__init__(daemon=True)
        self._store, self.killed, self.kept = store, 0, {}

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
        """One of the processes that Ray named after their class; both have a film."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes().startswith(b"ray::FilmWorker"):
                    return int(process.name)
            except OSError:
                continue
        return 0


def test_a_killed_worker_costs_the_chunk_at_work(ray_cluster, tiny_folder, tmp_path, capsys):
    wanted = rows(tiny_folder("distilled"))
    jobs, output = table(tmp_path, *wanted), tmp_path / "films"
    killer = Killer(output / "helios_store")
    killer.start()
    command = ["farm", str(jobs), "--output", str(output), "--workers", "2", "--address", ray_cluster.address, "--json"]
    assert main(command) == 0
    told = events(capsys.readouterr().out)
    assert killer.killed
    assert {event["id"] for event in of("film", told)} == {row["id"] for row in wanted}
    assert all(path.stat().st_ino == inode for path, inode in killer.kept.items()), "what was kept is not made again"
    sampled = [(event["id"], event["chunk"]) for event in of("chunk", told) if not event["reused"]]
    assert len(sampled) == len(set(sampled)) and len(sampled) <= len(PROMPTS) * CHUNKS
    chunks = list((output / "helios_store").glob("*.chunk.safetensors"))
    assert len(chunks) == len(PROMPTS) * CHUNKS
    made = one_process(tmp_path, jobs)
    for row in wanted:
        film = f"{row['id']}.mp4"
        assert (output / film).read_bytes() == (made.output / film).read_bytes()
