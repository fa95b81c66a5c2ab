"""What a farm costs and gains on this machine: a plain loop, one worker, two workers, one thread each.

`python -m benchmarks.farm --films 8` renders the same films three times, with helios-tiny unless --model is given.
The loading of models is left out: time counts from the first step. Without a GPU every worker has one processor.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from helios_core.commands.renderer import PipelineRenderer
from helios_core.distributed.farm import Cluster, run_farm
from helios_core.distributed.farm_worker import Event, FarmFolder, FilmWorker, code_version
from helios_core.distributed.jobs import Job


def jobs(options: argparse.Namespace, first: int) -> list[Job]:
    size = (options.size, options.size)
    numbers = range(first, first + options.films)
    return [Job(f"film{i}", ((0, "a boat"),), options.model, *size, options.chunks * 33, seed=i) for i in numbers]


def looped(made: list[Job], folder: FarmFolder) -> tuple[float, float]:
    """Seconds in all, and of these in films."""
    worker = FilmWorker(PipelineRenderer({}), code_version())
    worker.render(made[0], folder)  # loads
    begun = time.monotonic()
    busy = sum(worker.render(job, folder).seconds for job in made[1:])
    return time.monotonic() - begun, busy


def farmed(made: list[Job], folder: FarmFolder, workers: int) -> tuple[float, float]:
    """Seconds from the end of the first film of each worker to the end of the last, and of these in films."""
    ends: list[float] = []
    seconds: list[float] = []

    def tell(_: Event) -> None:
        pass

    for outcome in run_farm(made, PipelineRenderer({}), folder, Cluster(workers=workers, cpus=1), tell):
        assert outcome.status == "finished", outcome.message
        ends.append(time.monotonic())
        seconds.append(outcome.seconds)
    return ends[-1] - ends[workers - 1], sum(seconds[workers:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="helios-tiny-distilled")
    parser.add_argument("--films", type=int, default=9)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    print("| | films an hour | seconds | of these in films |\n|---|---|---|---|")
    for number, (name, workers) in enumerate({"a plain loop": 0, "one worker": 1, "two workers": 2}.items()):
        with tempfile.TemporaryDirectory() as place:
            folder = FarmFolder(Path(place), Path(place) / "store")
            made = jobs(options, 1000 * number)
            wall, busy = farmed(made, folder, workers) if workers else looped(made, folder)
        films = options.films - max(1, workers)
        print(f"| {name} | {films / wall * 3600:.0f} | {wall:.1f} | {busy:.1f} |", flush=True)


if __name__ == "__main__":
    main()
