"""What a farm loses on the way: its driver, a machine, a worker that fails again and again; and many films."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import farm_stub
import pytest

from helios_core.commands.renderer import PipelineRenderer
from helios_core.distributed.farm import Cluster, run_farm
from helios_core.distributed.farm_worker import MOST_TRIES, FarmFolder, FilmWorker, code_version
from helios_core.distributed.jobs import Job

pytestmark = pytest.mark.slow
MANY = 500
FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def stub_jobs(count: int, chunks: int = 3) -> list[Job]:
    return [
        Job(f"film {i}", ((0, "boat"),), "stub", farm_stub.WIDTH, farm_stub.HEIGHT, chunks * 33, seed=i)
        for i in range(count)
    ]


def notes(path: Path) -> list[tuple[str, str, str]]:
    """(film, what, chunk) in the order of their happening."""
    return [tuple(line.rsplit(" ", 2)) for line in path.read_text().splitlines()]


def check_sampled_once(path: Path) -> None:
    kept = set()
    for film, what, chunk in notes(path):
        assert what != "sampled" or (film, chunk) not in kept, f"{film}: chunk {chunk} was finished, and sampled again"
        if what == "kept":
            kept.add((film, chunk))


def check_films(folder: FarmFolder, jobs: list[Job], alone: Path) -> None:
    """All are there, as one process makes them."""
    made = FarmFolder(alone, alone / "store")
    made.output.mkdir()
    worker = FilmWorker(farm_stub.StubRenderer(alone / "notes"), code_version())
    for job in jobs:
        assert worker.render(job, made).status == "finished"
        assert folder.film(job).read_bytes() == made.film(job).read_bytes()


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_driver(ray_cluster, tiny_folder, tmp_path):
    """The real model by the command line, killed and begun again."""
    model = {"model": str(tiny_folder("distilled")), "width": 64, "height": 64, "chunks": 2, "steps": [1, 1, 1]}
    jobs, output = tmp_path / "jobs.jsonl", tmp_path / "films"
    jobs.write_text("".join(json.dumps({"id": f"f{i}", "prompt": "boat", "seed": i, **model}) + "\n" for i in range(3)))
    command = [sys.executable, "-m", "helios_core", "farm", str(jobs), "--output", str(output), "--workers", "2"]
    command += ["--address", ray_cluster.address, "--json"]
    store = output / "helios_store"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        until(lambda: len(list(store.glob("*.chunk.safetensors"))) >= 2 or driver.poll() is not None)
        driver.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_ino for path in store.glob("*.chunk.safetensors")}
    assert len(kept) >= 2
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert all(path.stat().st_ino == inode for path, inode in kept.items())
    assert sorted(path.name for path in output.glob("*.mp4")) == ["f0.mp4", "f1.mp4", "f2.mp4"]
    assert len(list(store.glob("*.chunk.safetensors"))) == 6


def test_a_lost_machine(ray_head, tmp_path):
    """A second node is killed with its worker; the first one makes its film too, once it has nothing else to do."""
    node = ray_head.add_node(num_cpus=1, object_store_memory=100_000_000)
    folder, jobs = FarmFolder(tmp_path / "films", tmp_path / "store"), stub_jobs(4, chunks=4)
    folder.output.mkdir()
    renderer, told = farm_stub.StubRenderer(tmp_path / "notes", seconds=0.5), []
    outcomes = []
    for outcome in run_farm(jobs, renderer, folder, Cluster(ray_head.address, workers=2), told.append):
        outcomes.append(outcome)
        if len(outcomes) == 1:
            ray_head.remove_node(node, allow_graceful=False)
    assert sorted(outcome.id for outcome in outcomes) == sorted(job.id for job in jobs)
    assert {outcome.status for outcome in outcomes} == {"finished"}
    assert len({outcome["worker"] for outcome in told if outcome["event"] == "worker"}) == 2
    check_sampled_once(tmp_path / "notes")
    check_films(folder, jobs, tmp_path / "alone")


def test_a_film_that_ends_its_worker_each_time(ray_cluster, tmp_path, monkeypatch):
    class Poison(farm_stub.StubRenderer):
        def render(self, job, take, target, watch):
            if job.id == "film 1":
                os.kill(os.getpid(), signal.SIGKILL)
            super().render(job, take, target, watch)

    folder, jobs = FarmFolder(tmp_path, tmp_path / "store"), stub_jobs(3, chunks=1)
    poison = Poison(tmp_path / "notes")
    outcomes = {o.id: o for o in run_farm(jobs, poison, folder, Cluster(ray_cluster.address), lambda _: None)}
    assert {o.id: o.status for o in outcomes.values()} == {
        "film 0": "finished",
        "film 1": "failed",
        "film 2": "finished",
    }
    assert f"its worker died {MOST_TRIES} times" in outcomes["film 1"].message


def test_a_process_that_leaves_a_forward_has_others_for_the_next_film(ray_cluster, tiny_folder, tmp_path):
    class Faulty(PipelineRenderer):
        def _render(self, job, *rest):
            def full(*_, **__):
                raise MemoryError("no room")

            faulty = mock.patch("torch.distributed.all_to_all_single", full) if job.id == "f0" else nullcontext()
            with faulty:
                super()._render(job, *rest)

    folder, model = FarmFolder(tmp_path, tmp_path / "store"), str(tiny_folder("distilled"))
    jobs = [Job(f"f{i}", ((0, "boat"),), model, 64, 64, 33, steps=(1, 1, 1)) for i in range(3)]
    cluster = Cluster(ray_cluster.address)
    outcomes = {o.id: o for o in run_farm(jobs, Faulty({}, processes=2), folder, cluster, lambda _: None)}
    assert "(MemoryError: no room); the worker's log has more" in outcomes["f0"].message
    assert [outcomes[name].status for name in ("f1", "f2")] == ["finished"] * 2
    assert len({outcome.worker for outcome in outcomes.values()}) == 1, "the one that leads went on"


def test_five_hundred_films(ray_cluster, tmp_path):
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    folder, jobs, sizes, done = FarmFolder(tmp_path, tmp_path / "store"), stub_jobs(MANY, chunks=1), [], Counter()
    renderer = farm_stub.StubRenderer(tmp_path / "notes")
    for outcome in run_farm(jobs, renderer, folder, Cluster(ray_cluster.address, workers=2), lambda _: None):
        assert outcome.status == "finished"
        done[outcome.id] += 1
        sizes.append(resident())
    assert done == Counter(job.id for job in jobs)
    assert Counter(film for film, what, _ in notes(tmp_path / "notes") if what == "sampled") == done
    print(f"driver: {sizes[20]:.0f} MiB after 20 films, {sizes[-1]:.0f} after {MANY}, at most {max(sizes):.0f}")
    assert max(sizes[20:]) - sizes[20] < 60


def test_workers_of_a_machine_share_the_weights(ray_cluster, tiny_folder, tmp_path):
    """All that two workers have in memory of the weights' files are pages of the system's one copy of them."""
    import ray

    folder = FarmFolder(tmp_path, tmp_path / "store")
    model = str(tiny_folder("distilled"))
    ray.init(ray_cluster.address, log_to_driver=False)
    try:
        kind = ray.remote(FilmWorker).options(num_cpus=1)
        workers = [kind.remote(PipelineRenderer({}), code_version()) for _ in range(2)]
        jobs = [Job(f"f{i}", ((0, "boat"),), model, 64, 64, 33, steps=(1, 1, 1)) for i in range(2)]
        for outcome in ray.get([w.render.remote(job, folder) for w, job in zip(workers, jobs, strict=True)]):
            assert outcome.status == "finished", outcome.message
        names = ray.get([worker.identity.remote() for worker in workers])
        maps = [mapped(int(name.rpartition(":")[2])) for name in names]
    finally:
        ray.shutdown()
    print(f"weights in two workers, KiB: {maps}")
    for one in maps:
        assert one["Rss"] > 0 and one["Anonymous"] == one["Private_Dirty"] == 0
    assert any(one["Shared_Clean"] for one in maps)


def mapped(pid: int) -> Counter:
    """KiB of a process's mappings of safetensors files."""
    found, counts = Counter(), False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in line.split()[0]:
            counts = line.endswith(".safetensors")
        elif counts and rest.strip().endswith("kB"):
            found[name] += int(rest.split()[0])
    return found


def test_a_machine_with_another_version(ray_head, tmp_path, monkeypatch):
    """Its worker is refused by name, and the films are made by the other."""
    other = tmp_path / "other"
    shutil.copytree(ROOT / "helios_core", other / "helios_core", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "helios_core" / "errors.py").open("a", encoding="utf-8") as file:
        file.write("# Another version.\n")
    with monkeypatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), str(other)]))
        ray_head.add_node(num_cpus=1, object_store_memory=100_000_000)
    monkeypatch.chdir(tmp_path)  # Ray gives workers the driver's folder, which would be the checkout
    folder, jobs, told = FarmFolder(tmp_path, tmp_path / "store"), stub_jobs(3), []
    renderer = farm_stub.StubRenderer(tmp_path / "notes", seconds=1.0)
    outcomes = list(run_farm(jobs, renderer, folder, Cluster(ray_head.address, workers=2), told.append))
    assert [outcome.message for outcome in outcomes] == [""] * 3
    (refused,) = (event["message"] for event in told if event["event"] == "refused")
    assert re.fullmatch(rf"worker \S+:\d+ runs another version of the pack \(\w+, here {code_version()}\); .*", refused)
    assert len({outcome.worker for outcome in outcomes}) == 1
