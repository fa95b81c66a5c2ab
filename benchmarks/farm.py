"""What a farm costs and gains on this machine, with one thread each.

    python -m benchmarks.farm [--output benchmarks/results/farm.json]

The same films by a plain loop, by a farm of one worker, and by one of two; then hundreds of films without a network,
for the driver's memory. Model loading is left out: time counts from the end of each worker's first film. Times mean
something on a machine with nothing else to do; processor seconds, of the farm's every process, on any.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from helios_core.commands.embedded import embedded
from helios_core.commands.renderer import PipelineRenderer, model_size
from helios_core.distributed.farm import Cluster, run_farm
from helios_core.distributed.farm_worker import FarmFolder, FilmWorker, Outcome, code_version
from helios_core.distributed.jobs import Job
from helios_core.variants import CHUNK_FRAMES, DEFAULT

STUB = Path(__file__).resolve().parents[1] / "tests" / "distributed" / "farm_stub.py"
TICK, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Measured:
    """``films`` after the first of each worker: seconds in all, in films, and of all processors.

    The last are None for several workers, of which one may have been sent away before the other's last film ends.
    """

    workers: int
    films: int
    wall: float
    in_films: float
    processors: float | None

    @property
    def films_an_hour(self) -> float:
        return self.films / self.wall * 3600


def jobs(options: argparse.Namespace) -> list[Job]:
    width, height = model_size(options.model)
    frames = options.chunks * CHUNK_FRAMES
    return [
        Job(f"film{i}", ((0, "a boat"),), options.model, width, height, frames, seed=i) for i in range(options.films)
    ]


def looped(made: list[Job], folder: FarmFolder) -> Iterator[Outcome]:
    """The films one after the other, in this process."""
    worker = FilmWorker(PipelineRenderer({}), code_version())
    for job in made:
        yield worker.render(job, folder)


def measured(workers: int, options: argparse.Namespace) -> Measured:
    """``workers`` 0: the plain loop."""
    first = max(1, workers)
    begun = spent = wall = processors = in_films = 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = FarmFolder(Path(place), Path(place) / "store")
        cluster = Cluster(workers=workers, cpus=1)
        renderer = PipelineRenderer({})
        ends = (
            run_farm(jobs(options), renderer, folder, cluster, lambda _: None)
            if workers
            else looped(jobs(options), folder)
        )
        for count, outcome in enumerate(ends, 1):
            assert outcome.status == "finished", outcome.message
            if count == first:
                begun, spent = time.monotonic(), processor_seconds()
            elif count > first:
                in_films += outcome.seconds
            if count == options.films:  # before the workers are sent away
                wall, processors = time.monotonic() - begun, processor_seconds() - spent
    return Measured(workers, options.films - first, wall, in_films, processors if first == 1 else None)


def processor_seconds() -> float:
    """Of this process and of all that it has started, as far as they are alive."""
    used: dict[int, tuple[int, float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        used[int(stat.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICK

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in used and is_ours(used[process][0]))

    return sum(seconds for process, (_, seconds) in used.items() if is_ours(process))


def driver_memory(films: int) -> dict[str, float]:
    """MiB of the driver after 20 films of a farm without a network, and after all of them, which it counts."""
    stub, sizes, done = _stub(), list[float](), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder, renderer = FarmFolder(Path(place), Path(place) / "store"), stub.StubRenderer(Path(place) / "notes")
        queued = [
            Job(f"film{i}", ((0, "boat"),), "stub", stub.WIDTH, stub.HEIGHT, CHUNK_FRAMES, seed=i) for i in range(films)
        ]
        for outcome in run_farm(queued, renderer, folder, Cluster(workers=2, cpus=1), lambda _: None):
            done[outcome.id] += outcome.status == "finished"
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20)
        made = len(list(folder.output.glob("*.mp4")))
        sampled = sum(" sampled " in line for line in (Path(place) / "notes").read_text().splitlines())
    assert made == sampled == len(done) == films and set(done.values()) == {1}, "none is lost, none is made twice"
    return {"films": films, "after_20": sizes[20], "most": max(sizes), "end": sizes[-1]}


def _stub() -> ModuleType:
    """The tests' renderer, which workers import by the same name."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STUB.parent), os.environ.get("PYTHONPATH")]))
    spec = importlib.util.spec_from_file_location(STUB.stem, STUB)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[STUB.stem] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=embedded(DEFAULT.name).name)
    parser.add_argument("--films", type=int, default=10, help="of each run; even")
    parser.add_argument("--chunks", type=int, default=2, help="of each film")
    parser.add_argument("--many", type=int, default=500, help="films of the driver's memory")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    print("| | films an hour | seconds | of these in films | processor seconds |\n|---|---|---|---|---|", flush=True)
    runs = []
    for name, workers in {"a plain loop": 0, "one worker": 1, "two workers": 2}.items():
        runs.append(run := measured(workers, options))
        processors = "" if run.processors is None else f"{run.processors:.1f}"
        figures = f"{run.films_an_hour:.0f} | {run.wall:.1f} | {run.in_films:.1f} | {processors}"
        print(f"| {name} | {figures} |", flush=True)
    loop, one, two = runs
    assert loop.processors is not None and one.processors is not None
    memory = driver_memory(options.many)
    found = {
        "two_against_one": two.films_an_hour / one.films_an_hour,
        "one_against_loop_seconds": loop.films_an_hour / one.films_an_hour - 1,
        "one_against_loop_processor_seconds": one.processors / one.films / (loop.processors / loop.films) - 1,
        "between_films": one.wall / one.in_films - 1,
    }
    print(f"\ntwo workers against one: {found['two_against_one']:.2f} times the films an hour")
    print(f"one worker against a plain loop: {found['one_against_loop_seconds']:+.1%} seconds, of a film's "
          f"{found['one_against_loop_processor_seconds']:+.1%} processor seconds; "
          f"{found['between_films']:.1%} of a film's time passes between two")  # fmt: skip
    print("driver: {after_20:.0f} MiB after 20 films, {end:.0f} after {films}, at most {most:.0f}".format(**memory))
    if options.output:
        content = {
            "model": options.model,
            "chunks": options.chunks,
            "load": os.getloadavg(),
            **found,
            "driver_mib": memory,
        }
        content["runs"] = [asdict(run) for run in runs]
        options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
