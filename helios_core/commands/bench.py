"""Command line: ``python -m helios_core bench``, HeliosBench's prompts and lengths in one table.

Measured are throughput, text and VAE included, HeliosBench's motion amplitude, and drift; with CLIP and LAION's head an
aesthetic and a semantic score too. The semantic one is ViCLIP's, as HeliosBench's, where there is a ViCLIP, else CLIP's
mean over frames; what one of them scored is scored anew when the other one is there. Smoothness and naturalness need
networks that are not part of Helios, and are not measured. Films, chunks and results are kept: the same command goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import HeliosError, reason, shortened
from ..networks.settings import readable_lines
from ..pipeline import HeliosPipeline
from ..take.film import chunk_count
from ..take.headless import write_film
from ..take.progress import TerminalBar
from ..take.store import FOLDER_NAME, ChunkStore, write_atomically
from ..take.take import Take
from ..variants import CHUNK_FRAMES, FPS, RELEASED_SIZE
from ..video.drift.clip import ScoreModels
from ..video.drift.meter import FARNEBACK, opencv
from ..video.drift.report import NO_SCORES, SCORES, Scores, report_file
from ..video.reader import VideoReader
from ..video.segments import VideoSettings
from .drift import add_clip_vision
from .films import DTYPES, device_or_default, load_pipeline, sampling

RESULTS, TABLE_CSV, TABLE_MARKDOWN = "results.jsonl", "table.csv", "table.md"
DRIFTS = ("luma", "contrast", "saturation", "hue", "sharpness", "motion")
NETWORKS = tuple(score.name for score in SCORES)
COLUMNS = (
    "name",
    "frames",
    "films",
    "fps",
    "rating",
    "long_total",
    "motion_amplitude",
    *NETWORKS,
    "semantic_by",
    *(f"drift_{name}" for name in (*DRIFTS, *NETWORKS)),
    "source",
)
# Of a length's films.
MEANS = tuple(name for name in COLUMNS if name in ("fps", "motion_amplitude", *NETWORKS) or name.startswith("drift_"))
# HeliosBench rates throughput from 1 to 10, one point for each 3.2 frames a second.
FPS_A_POINT, BEST = 3.2, 10
# Of the paper (arXiv 2603.04379): frames a second on one H100 at 384x640.
PUBLISHED = {
    "CausVid": 24.41,
    "Reward Forcing": 22.13,
    "Self-Forcing": 21.20,
    "Helios-Distilled": 19.53,
    "Krea 14B": 6.74,
    "FastVideo 14B": 5.37,
    "Helios-Base": 0.54,
    "Wan 2.1 14B": 0.33,
}
# Of the paper: HeliosBench's total of long films, from scores that are not measured here.
PUBLISHED_LONG_TOTALS = {"Helios-Distilled": 6.94, "Reward Forcing": 6.88, "Helios-Base": 6.57}


@dataclass(frozen=True)
class Row:
    """One prompt of the benchmark at one length."""

    name: str
    prompt: str
    frames: int


def read_rows(path: Path, lengths: Sequence[int] = (), limit: int | None = None) -> list[Row]:
    """HeliosBench's file: columns id, prompt and duration (frames).

    Args:
        lengths: durations to take; all where empty.
        limit: the first so many of each length.

    Raises:
        HeliosError: no such file, another table, or nothing left of it.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            entries = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HeliosError(f"--prompts {path} cannot be read ({reason(error)}); give HeliosBench's CSV file.") from None
    taken: dict[int, list[Row]] = {}
    for entry in entries:
        name, prompt, duration = (str(entry.get(key) or "") for key in ("id", "prompt", "duration"))
        if not re.fullmatch(r"\w{1,60}", name) or not prompt or not re.fullmatch(r"[1-9][0-9]{0,5}", duration):
            raise HeliosError(
                f"--prompts {path} has the row {shortened(entry)}; each needs an id of up to 60 letters and digits, a "
                "prompt, and a duration in frames."
            )
        if not lengths or int(duration) in lengths:
            taken.setdefault(int(duration), []).append(Row(name, prompt, int(duration)))
    rows = [row for frames in sorted(taken) for row in taken[frames][:limit]]
    if not rows:
        raise HeliosError(f"--prompts {path} has no row of the lengths {list(lengths)}; leave --lengths out for all.")
    return rows


def motion_amplitude(path: Path) -> float:
    """HeliosBench's: the absolute mean of Farneback's flow, both directions together, with their signs.

    Its flow maps are averaged to 16 pixels wide first, which leaves their mean as it is.
    """
    cv2 = opencv()
    before, total, count = None, 0.0, 0
    with VideoReader(path) as reader:
        for frame in reader:
            grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
            if before is not None:
                total += float(cv2.calcOpticalFlowFarneback(before, grey, None, **FARNEBACK).mean())
                count += 1
            before = grey
    return abs(total / count) if count else 0.0


def measured(path: Path, scores: Scores = NO_SCORES) -> dict[str, Any]:
    """Figures of a finished film; a score is the mean of its chunks'."""
    report = report_file(path, path.name, scores=scores)
    drifts = {f"drift_{x.measure.name}": x.drift for x in report.drifts}
    means = {name: float(np.nanmean(report.chunks[name])) for name in NETWORKS if name in report.chunks}
    return {"motion_amplitude": motion_amplitude(path), **means, **drifts}


def table(name: str, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a length, the means of its films, and the published ones."""
    lengths: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        lengths.setdefault(result["frames"], []).append(result)
    lines = []
    for frames, films in sorted(lengths.items()):
        line: dict[str, Any] = {"name": name, "frames": frames, "films": len(films), "source": "measured here"}
        for column in MEANS:
            known = [film[column] for film in films if film.get(column) is not None]
            line[column] = sum(known) / len(known) if known else None
        line["semantic_by"] = " and ".join(sorted({film["semantic_by"] for film in films if film.get("semantic_by")}))
        line["rating"] = None if line["fps"] is None else min(BEST, math.ceil(line["fps"] / FPS_A_POINT))
        lines.append(line)
    published = [
        {
            "name": name,
            "fps": fps,
            "rating": math.ceil(fps / FPS_A_POINT),
            "long_total": PUBLISHED_LONG_TOTALS.get(name),
            "source": "published, H100, 384x640",
        }
        for name, fps in PUBLISHED.items()
    ]
    return lines + published


def _columns(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Those of ``COLUMNS`` without scores that no film has."""
    absent = {name for name in NETWORKS if all(line.get(name) is None for line in lines)}
    return [name for name in COLUMNS if name.removeprefix("drift_").removesuffix("_by") not in absent]


def as_csv(lines: Sequence[dict[str, Any]]) -> str:
    text, columns = io.StringIO(newline=""), _columns(lines)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _cell(line.get(column)) for column in columns} for line in lines)
    return text.getvalue()


def as_markdown(lines: Sequence[dict[str, Any]]) -> str:
    columns = _columns(lines)
    rows = [columns, ("---",) * len(columns), *([_cell(line.get(column)) for column in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def add_command(commands: Any) -> None:
    """Adds ``bench`` to the command line's subparsers."""
    command = commands.add_parser("bench", help="render HeliosBench's prompts and measure the films")
    command.add_argument("--model", type=Path, required=True, help="released Helios folder")
    command.add_argument(
        "--prompts", type=Path, required=True, help="HeliosBench's CSV: id, prompt, duration in frames"
    )
    command.add_argument("--lengths", type=int, nargs="+", default=(), help="durations to take (default: all)")
    command.add_argument("--limit", type=int, help="the first so many prompts of each length")
    command.add_argument("--output", type=Path, default=Path("heliosbench"), help="folder of films and tables")
    command.add_argument("--width", type=int, default=RELEASED_SIZE[0])
    command.add_argument("--height", type=int, default=RELEASED_SIZE[1])
    command.add_argument("--steps", type=int, nargs="+", help="steps per stage (default: the variant's)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", help="cuda, cpu, mps (default: cuda where there is one)")
    command.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, float32 on cpu")
    add_clip_vision(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    opencv()  # refused before anything is rendered
    rows = read_rows(options.prompts, options.lengths, options.limit)
    models = ScoreModels.read(options.clip_vision, device_or_default(options.device))
    pipeline = load_pipeline(options.model, options.device, options.dtype)
    settings = {name: getattr(options, name) for name in ("width", "height", "steps", "seed")}
    settings |= {"model": pipeline.fingerprint("transformer", "vae", "text_encoder", "scheduler")}
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeliosError(f"--output {options.output} cannot be made ({error.strerror}); choose another.") from None
    results = known_results(options.output / RESULTS, settings, models.semantic_by)
    pipeline.encode_prompt("")  # the first use reads the text encoder, which is no part of a film
    for row in rows:
        known = results.get((row.name, row.frames), {})
        if not known or not set(models.names) <= known.keys():
            found = {"id": row.name, "frames": row.frames}
            found |= _film(pipeline, row, options, models.of(row.prompt), known)
            found |= {"semantic_by": models.semantic_by, "settings": settings}
            results[row.name, row.frames] = found
            with (options.output / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        lines = table(f"Helios {pipeline.variant}", results.values())
        for name, text in ((TABLE_CSV, as_csv(lines)), (TABLE_MARKDOWN, as_markdown(lines))):
            write_atomically(options.output / name, text.encode(), durable=False)
    print(as_markdown(lines), end="")
    for name, why in models.absent.items():
        print(f"Not measured: {name} ({why}).")


def _film(
    pipeline: HeliosPipeline, row: Row, options: argparse.Namespace, scores: Scores, known: dict[str, Any]
) -> dict[str, Any]:
    """Figures of a row; its film is rendered unless ``known`` has figures of it that lack scores alone."""
    output = options.output / f"{row.name}_{row.frames}.mp4"
    fps = known["fps"] if "fps" in known and output.is_file() else _render(pipeline, row, options, output)
    return {"fps": fps, **measured(output, scores)}


def _render(pipeline: HeliosPipeline, row: Row, options: argparse.Namespace, output: Path) -> float | None:
    """Frames a second; None where a part of the film was found."""
    steps = sampling(options.steps)
    request = {
        "prompt": row.prompt,
        "width": options.width,
        "height": options.height,
        "num_frames": row.frames,
        "generator": torch.Generator("cpu").manual_seed(options.seed),
        **steps,
    }
    take = Take(ChunkStore(options.output / FOLDER_NAME), output.stem, {"prompt": row.prompt})
    begun = time.monotonic()
    with TerminalBar(pipeline.steps_per_chunk(row.frames, **steps), FPS) as bar:
        film = VideoSettings(options.width, options.height, FPS)
        chunks = pipeline.stream(**request, on_step=bar.on_step, output_type="latent", take=take)
        write_film(pipeline, chunks, take, output, film, bar)
    seconds = time.monotonic() - begun
    return None if bar.progress.chunks_reused else chunk_count(row.frames) * CHUNK_FRAMES / seconds


def known_results(
    path: Path, settings: dict[str, Any], semantic_by: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of an earlier run with the same settings, by id and length; a line that was cut off is made again.

    So are semantic scores of another network than ``semantic_by``, where one is given.
    """
    known = (result for result in readable_lines(path) if result.get("settings") == settings)
    wanted = (result for result in known if {"id", "frames"} <= result.keys())
    return {(result["id"], result["frames"]): _comparable(result, semantic_by) for result in wanted}


def _comparable(result: dict[str, Any], semantic_by: str | None) -> dict[str, Any]:
    by = result.get("semantic_by") or "CLIP"  # the only one of older results
    if "semantic" in result and semantic_by in (None, by):
        return {**result, "semantic_by": by}
    return {name: value for name, value in result.items() if "semantic" not in name}
