"""Many queued jobs in one real ComfyUI: memory, file handles and threads after each must stay where they are.

    python benchmarks/soak.py --comfyui PATH [--jobs 200] [--interrupts 50] [--seed 0] [--output FOLDER]

Queues the shipped workflows (every variant with text, image and video to video, chunks by hand, prompts that change,
a film to disk) with helios-tiny at 64x64, one after the other over HTTP, and interrupts some at random moments. The
store is held to a few megabytes; its files are made a day older after each job, since eviction spares those of
the last hour. Prints figures, and writes them as ``soak.json`` and ``soak.png`` (Linux only; the plot needs
``pip install ".[bench]"``).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helios_core.take.store import CHUNK_SUFFIX, SEGMENT_SUFFIX  # noqa: E402
from helios_setup.comfyui import existing_tree, link_folder  # noqa: E402
from helios_setup.examples import write_examples  # noqa: E402
from helios_setup.paths import PACK_NAME  # noqa: E402
from helios_setup.server import ComfyServer, failure, stop_on_terminate  # noqa: E402
from helios_setup.workflow import VARIANTS, fill_workflow, load_workflow, workflow_variant  # noqa: E402

WORKFLOWS = ROOT / "workflows" / "api"
SIZE = (64, 64)
STEPS = {"HeliosBaseSampler": 2, "HeliosPyramidSampler": "1, 1, 1", "HeliosDMDSampler": "1, 1, 1"}
PROMPTS = ("a boat on a lake", "a storm at sea", "a street at night", "a fire in the woods")
MOST_CHUNKS = 2
QUOTA_MIB = 4
ALLOWED_MIB, WARM_JOBS = 60, 20
# A connection that is being closed, and a thread that is ending, may still be there when a job is done.
ALLOWED_HANDLES, ALLOWED_THREADS = 4, 4
LIMIT_VARIABLE = "HELIOS_STORE_GIB"
# glibc would serve ever larger blocks from heaps, which keep pieces of what is freed: more than any leak looked for.
HEAPS = ("MALLOC_MMAP_THRESHOLD_", str(256 * 2**10))
MIB = 2**20
DAY = 24 * 3600.0


@dataclass(frozen=True)
class Job:
    """One queued workflow; ``interrupt`` is when it is interrupted, as a part of the time it usually takes."""

    workflow: str
    seed: int
    chunks: int
    prompt: str
    interrupt: float | None


@dataclass(frozen=True)
class Measured:
    """A server after a job.

    Attributes:
        outcome: success, interrupted, or an error's sentence.
        rss, pss: resident and proportional memory in MiB; ``peak``: the highest resident memory so far.
        handles, threads: open files and threads of the process.
        store: MiB in the chunk store.
    """

    job: int
    workflow: str
    outcome: str
    seconds: float
    rss: float
    pss: float
    peak: float
    handles: int
    threads: int
    store: float


def plan(jobs: int, interrupts: int, seed: int) -> list[Job]:
    """All workflows in turn, each round in another order; which are interrupted, and when, is drawn."""
    rng, names = random.Random(seed), sorted(file.stem for file in WORKFLOWS.glob("*.json"))
    order = [name for _ in range(-(-jobs // len(names))) for name in rng.sample(names, len(names))][:jobs]
    stopped = set(rng.sample(range(jobs), interrupts))
    return [
        Job(name, rng.randrange(2**32), rng.randint(1, MOST_CHUNKS), rng.choice(PROMPTS),
            rng.random() if index in stopped else None)
        for index, name in enumerate(order)
    ]  # fmt: skip


def filled(job: Job) -> dict[str, Any]:
    """The job's graph: tiny model, few steps, and a take, so that the store is used."""
    graph = load_workflow(WORKFLOWS, job.workflow)
    model = f"helios-tiny-{workflow_variant(job.workflow)}"
    graph = fill_workflow(graph, model, job.prompt, size=SIZE)
    for node in graph.values():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in STEPS:
            inputs["steps"] = STEPS[kind]
        if "num_chunks" in inputs:
            inputs.update(num_chunks=job.chunks, take=job.workflow)
        if "max_chunks" in inputs:
            inputs["max_chunks"] = job.chunks
        if "first_chunks" in inputs:
            inputs.update(first_chunks="0, 1, 2", blend=2)
        if "seed" in inputs and kind != "HeliosImageHistory":
            inputs["seed"] = job.seed
        if "amplify_first_chunk" in inputs:
            inputs["amplify_first_chunk"] = False
    return graph


def start(tree: Path, base: Path, variants: Sequence[str] = VARIANTS) -> ComfyServer:
    """A server with tiny models, not started yet, whose store holds a few megabytes."""
    for name in ("custom_nodes", "input", "output", "user", "models/diffusers"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, base / "custom_nodes" / PACK_NAME)
    write_examples(base / "input")
    for variant in variants:
        folder = base / "models" / "diffusers" / f"helios-tiny-{variant}"
        command = [sys.executable, "-m", "helios_core", "tiny", "--variant", variant, "--output", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    own = ["--base-directory", str(base), "--temp-directory", str(base), "--database-url", "sqlite:///:memory:"]
    os.environ[LIMIT_VARIABLE] = str(QUOTA_MIB / 1024)
    return ComfyServer(tree, Path(sys.executable), base / "comfyui.log", [*own, "--cpu", "--force-fp32"])


def soak(server: ComfyServer, base: Path, jobs: Sequence[Job]) -> Iterator[Measured]:
    """Runs the jobs in turn and measures after each."""
    store, usual = base / "output" / "helios_store", {job.workflow: 1.0 for job in jobs}
    for index, job in enumerate(jobs, 1):
        began = time.monotonic()
        prompt = server.queue(filled(job))
        timer = None
        if job.interrupt is not None:
            timer = threading.Timer(job.interrupt * usual[job.workflow], server.interrupt)
            timer.start()
        entry = server.wait(prompt)
        seconds = time.monotonic() - began
        if timer is not None:
            # One that comes late finds nothing to interrupt, and must not meet the next job.
            timer.cancel()
            timer.join()
        else:
            usual[job.workflow] = seconds
        outcome = failure(entry) or "success"
        status, memory = process_numbers(server.pid, "status"), process_numbers(server.pid, "smaps_rollup")
        yield Measured(
            index, job.workflow, "interrupted" if outcome.startswith("Interrupted") else outcome, round(seconds, 2),
            memory["Rss"] / 1024, memory["Pss"] / 1024, status["VmHWM"] / 1024,
            open_files(server.pid), status["Threads"], _size(store) / MIB,
        )  # fmt: skip
        _age(store)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def process_numbers(pid: int, file: str) -> dict[str, int]:
    """Lines like ``VmRSS:  123 kB`` of a file under /proc."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    parts = [line.split() for line in lines if ":" in line]
    return {part[0].rstrip(":"): int(part[1]) for part in parts if len(part) > 1 and part[1].isdigit()}


def _kept(store: Path) -> list[Path]:
    """Chunks and segments, which is all that the store's limit counts."""
    return [*store.glob(f"*{CHUNK_SUFFIX}"), *store.glob(f"*{SEGMENT_SUFFIX}")]


def _size(store: Path) -> int:
    return sum(path.stat().st_size for path in _kept(store))


def _age(store: Path) -> None:
    for path in _kept(store):
        state = path.stat()
        os.utime(path, (state.st_atime, state.st_mtime - DAY))


def summary(rows: Sequence[Measured], warm: int = WARM_JOBS) -> dict[str, float]:
    """What must stay flat, after the first ``warm`` jobs: growth is against the first job counted."""
    counted = rows[warm - 1 :]
    first = counted[0]
    return {
        "jobs": len(rows),
        "interrupted": sum(row.outcome == "interrupted" for row in rows),
        "failed": sum(row.outcome not in ("success", "interrupted") for row in rows),
        "rss_first": first.rss,
        "rss_last": counted[-1].rss,
        "rss_growth": max(row.rss for row in counted) - first.rss,
        "peak_growth": counted[-1].peak - first.peak,
        "handles_growth": max(row.handles for row in counted) - first.handles,
        "threads_growth": max(row.threads for row in counted) - first.threads,
        "store_largest": max(row.store for row in counted),
    }


def plot(rows: Sequence[Measured], file: Path) -> None:
    """Memory, handles and threads, and the store, job by job."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (memory, counts, store) = plt.subplots(3, 1, figsize=(8, 6.5), sharex=True, layout="constrained")
    numbers = [row.job for row in rows]
    memory.plot(numbers, [row.rss for row in rows], label="resident")
    memory.plot(numbers, [row.peak for row in rows], label="peak so far", linewidth=0.8)
    stopped = [row for row in rows if row.outcome == "interrupted"]
    memory.plot([row.job for row in stopped], [row.rss for row in stopped], "x", markersize=4, label="interrupted")
    memory.set(ylabel="MiB", ylim=(0, None))
    counts.plot(numbers, [row.handles for row in rows], label="open files")
    counts.plot(numbers, [row.threads for row in rows], label="threads")
    counts.set(ylim=(0, None))
    store.plot(numbers, [row.store for row in rows], label="chunk store")
    store.axhline(QUOTA_MIB, color="grey", linestyle="--", linewidth=0.8, label="its limit")
    store.set(ylabel="MiB", ylim=(0, None), xlabel="job")
    for axes in (memory, counts, store):
        axes.legend(loc="lower right", fontsize="small", ncols=3)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI folder (default: what run.py setup unpacked)")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--interrupts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path.cwd(), help="folder of soak.json and soak.png")
    options = parser.parse_args()
    tree = options.comfyui.resolve() if options.comfyui else existing_tree()
    if tree is None:
        parser.error("no ComfyUI: run `python run.py setup`, or give --comfyui")
    stop_on_terminate()
    os.environ.setdefault(*HEAPS)
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as temporary, start(tree, Path(temporary)) as server:
        for row in soak(server, Path(temporary), plan(options.jobs, options.interrupts, options.seed)):
            rows.append(row)
            print(
                f"{row.job:4} {row.workflow:32} {row.outcome:12.60} {row.seconds:6.1f} s  {row.rss:7.0f} MiB "
                f"{row.handles:4} files {row.threads:4} threads  store {row.store:5.2f} MiB",
                flush=True,
            )
    figures = summary(rows, min(WARM_JOBS, len(rows)))
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
    text = f'{{"summary": {json.dumps(figures)},\n "jobs": [\n  {lines}\n]}}\n'
    (options.output / "soak.json").write_text(text)
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    plot(rows, options.output / "soak.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
