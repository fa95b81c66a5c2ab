"""Command line: ``python -m helios_core farm``, the films of a table on the workers of a Ray cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..distributed.farm import Cluster, require_ray, run_farm
from ..distributed.farm_progress import FarmProgress, JsonLines, LiveTable
from ..distributed.farm_results import MANIFEST, FarmResults
from ..distributed.farm_worker import FarmFolder, Renderer
from ..distributed.jobs import COLUMNS, LENGTHS, BadRow, Job, read_jobs
from ..errors import HeliosError, reason
from ..take.store import FOLDER_NAME
from ..variants import DEFAULT
from .embedded import embedded
from .films import add_loading, loading
from .renderer import PipelineRenderer, model_size

CELLS = ("model", "width", "height", "chunks", "seed", "steps", "guidance", "fps", "crf")
DEFAULT_SECONDS = "5"


def add_command(commands: Any) -> None:
    """Adds ``farm`` to the command line's subparsers."""
    columns = "\n".join(f"  {name:16} {about}" for name, about in COLUMNS.items())
    command = commands.add_parser(
        "farm",
        help="render the films of a table on the workers of a Ray cluster",
        epilog=f"columns of JOBS, all but a prompt optional:\n{columns}\n\nFilms, farm.jsonl with the results and the "
        "store of chunks go to --output, which all workers must see.\nA second run makes what is missing or changed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("jobs", type=Path, metavar="JOBS", help="CSV file, or JSON lines (.jsonl), one film a row")
    command.add_argument("--output", type=Path, required=True, help="folder of the films")
    command.add_argument("--store", type=Path, help=f"folder of chunks (default: {FOLDER_NAME} in --output)")
    command.add_argument("--address", help="the Ray cluster: auto, or HOST:PORT (default: this machine alone)")
    command.add_argument("--workers", type=int, help="films at a time (default: one a GPU, one without GPUs)")
    command.add_argument(
        "--gpus-per-film", type=int, default=1, help="GPUs of one machine that make each film together (default: 1)"
    )
    command.add_argument("--cpus", type=int, help="processors of each worker, or of each GPU's (default: its share)")
    command.add_argument(
        "--cfg-parallel", action="store_true", help="half of a film's GPUs take the negative prompt (Base and Mid)"
    )
    command.add_argument("--json", action="store_true", help="progress as JSON lines, as where there is no terminal")
    for name in CELLS:
        command.add_argument(f"--{name}", help=f"for rows without it: {COLUMNS[name]}")
    add_loading(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    for option in ("workers", "cpus", "gpus-per-film"):
        count = getattr(options, option.replace("-", "_"))
        if count is not None and count < 1:
            raise HeliosError(f"--{option} {count} must be at least 1.")
    require_ray()
    defaults = {name: value for name in CELLS if (value := getattr(options, name)) is not None}
    small = embedded(DEFAULT.name)
    defaults.setdefault("model", small.name)
    if not set(LENGTHS) & defaults.keys():
        defaults["seconds"] = DEFAULT_SECONDS
    rows = read_jobs(options.jobs, defaults, model_size)
    output = options.output.absolute()
    folder = FarmFolder(output, (options.store or output / FOLDER_NAME).absolute())
    cluster = Cluster(options.address, options.workers, options.cpus)
    renderer = PipelineRenderer(loading(options), options.gpus_per_film, options.cfg_parallel)
    farm(rows, renderer, folder, cluster, options.json or not sys.stdout.isatty())


def farm(rows: Sequence[Job | BadRow], renderer: Renderer, folder: FarmFolder, cluster: Cluster, as_json: bool) -> None:
    """Makes what is not there yet, and tells of it on standard output.

    Raises:
        HeliosError: after the others are made, that some films were not.
    """
    begun = time.monotonic()
    results = FarmResults(folder)
    keys, wanted, bad = _checked(rows, renderer)
    jobs = sorted((job for job in wanted if not results.has(job, keys[job.id])), key=lambda job: job.model)
    progress = _progress(len(jobs), sum(job.chunks for job in jobs), as_json)
    progress.tell({"event": "start", "films": len(jobs), "there": len(wanted) - len(jobs), "bad_rows": len(bad)})
    for row in bad:
        progress.tell({"event": "bad_row", "id": row.id, "message": f"{row.id}: {row.message}"})
    for outcome in run_farm(jobs, renderer, folder, cluster, progress.tell):
        results.add(outcome, keys[outcome.id])
        progress.tell(outcome.event())
    failed, seconds = progress.films_failed, round(time.monotonic() - begun, 1)
    progress.tell({"event": "end", "made": progress.films_done, "failed": failed, "seconds": seconds})
    progress.close()
    if failed:
        raise HeliosError(f"{failed} of {len(rows)} films were not made; see {folder.output / MANIFEST} and run again.")


def _progress(films: int, chunks: int, as_json: bool) -> FarmProgress:
    return (JsonLines if as_json else LiveTable)(films, chunks, sys.stdout)


def _checked(rows: Sequence[Job | BadRow], renderer: Renderer) -> tuple[dict[str, str], list[Job], list[BadRow]]:
    """Every usable job's key by its id, these jobs, and the rows that cannot be used."""
    models: dict[str, str] = {}
    keys: dict[str, str] = {}
    jobs: list[Job] = []
    bad = [row for row in rows if isinstance(row, BadRow)]
    for row in (row for row in rows if isinstance(row, Job)):
        try:
            job = renderer.checked(row)
            if job.model not in models:
                models[job.model] = renderer.identity(job.model)
            keys[job.id] = job.key(models[job.model])
        except HeliosError as error:
            bad.append(BadRow(row.id, str(error)))
        except OSError as error:
            bad.append(BadRow(row.id, f"a file of it cannot be read ({reason(error)}); check its paths."))
        else:
            jobs.append(job)
    return keys, jobs, bad
