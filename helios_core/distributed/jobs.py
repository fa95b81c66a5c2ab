"""Jobs: one row of a table (CSV or JSON lines) is one film.

The columns are those of :data:`COLUMNS`; ``id``, ``prompt`` and ``duration`` are HeliosBench's, whose file is such a
table as it is.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import HeliosError, reason, shortened
from ..take.film import chunk_count
from ..take.fingerprint import file_fingerprint, fingerprint
from ..take.prompts import DEFAULT_BLEND, PromptSchedule, parse_schedule
from ..take.seed_changes import MAX_SEED, parse_seed_changes
from ..take.take import check_name
from ..variants import CHUNK_FRAMES, FPS
from ..video.segments import VideoSettings

KEY_FORMAT, KEY_VERSION = "helios-job", 1
LARGEST = 100_000_000  # bytes of a table: a million prompts
MOST_DIGITS = 20
COLUMNS = {
    "id": "names the film's file, ID.mp4 (default: the row's number)",
    "prompt": "what the film shows",
    "prompt_schedule": "in place of prompt: '0: a boat / 7: a storm'",
    "negative_prompt": "what it should not show, with guidance above 1",
    "blend": f"chunks over which a prompt of the schedule takes over ({DEFAULT_BLEND})",
    "image": "image to video: a picture's path, from the table's folder on",
    "video": "video to video: a clip's path, from the table's folder on",
    "model": "a folder, a model of the pack, or a repository in the hub's cache",
    "width": "pixels, divisible by 64 (Base: 16)",
    "height": "pixels, divisible by 64 (Base: 16)",
    "chunks": f"length in chunks of {CHUNK_FRAMES} frames",
    "duration": "length in frames, in place of chunks",
    "seconds": "length in seconds, in place of chunks",
    "seed": "0 where nothing is said",
    "seed_changes": "'7: 123': another seed from chunk 7 on",
    "steps": "steps per stage, '2 2 2' (the variant's)",
    "guidance": "guidance scale (the variant's)",
    "fps": f"frames per second of the file ({FPS:g})",
    "crf": "h264 quality, lower is better (18)",
}
LENGTHS = ("chunks", "duration", "seconds")

Sizes = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class Job:
    """One film: ``rows`` is its prompt schedule, ``frames`` its length, the rest as :data:`COLUMNS` says.

    ``image`` and ``video`` are absolute paths or empty; ``steps`` is empty and ``guidance`` None for the variant's.
    """

    id: str
    rows: tuple[tuple[int, str], ...]
    model: str
    width: int
    height: int
    frames: int
    negative_prompt: str | None = None
    blend: int = DEFAULT_BLEND
    image: str = ""
    video: str = ""
    seed: int = 0
    seed_changes: str = ""
    steps: tuple[int, ...] = ()
    guidance: float | None = None
    fps: float = FPS
    crf: float = 18.0

    def __post_init__(self) -> None:
        """Refuses what no model could make.

        Raises:
            HeliosError: one sentence about the first fault.
        """
        check_name(self.id)
        if not all(text for _, text in self.rows):
            raise HeliosError("it has no prompt; write one into the column prompt or prompt_schedule.")
        PromptSchedule(self.rows, self.blend)
        if not 0 <= self.seed <= MAX_SEED:
            raise HeliosError(f"seed={shortened(self.seed)} must be 0 to {MAX_SEED}.")
        parse_seed_changes(self.seed_changes)
        chunk_count(self.frames)
        _ = self.settings
        if self.image and self.video:
            raise HeliosError("image and video are both given; a film begins from one of them.")

    @property
    def chunks(self) -> int:
        return chunk_count(self.frames)

    @property
    def settings(self) -> VideoSettings:
        return VideoSettings(self.width, self.height, self.fps, crf=self.crf)

    def check_media(self) -> None:
        """Raises HeliosError where the image or video is no file here."""
        for name in ("image", "video"):
            path = getattr(self, name)
            try:
                is_there = not path or Path(path).is_file()
            except OSError:  # too long for a name
                is_there = False
            if not is_there:
                raise HeliosError(f"{name} {path} is no file; check its path, which begins at the table's folder.")

    def key(self, model: str) -> str:
        """What tells films apart: everything but the id. ``model`` is what tells models apart.

        Raises:
            OSError: the image or video cannot be read.
        """
        media = [file_fingerprint(path) if path else "" for path in (self.image, self.video)]
        content = {k: v for k, v in asdict(self).items() if k not in ("id", "model", "image", "video")}
        return fingerprint(KEY_FORMAT, KEY_VERSION, content, model, media)

    def shown(self) -> dict[str, Any]:
        """What the take's manifest tells people."""
        known = {"prompt": self.rows[0][1], "seed": self.seed, "width": self.width, "height": self.height}
        known |= {"negative_prompt": self.negative_prompt, "rows": [list(row) for row in self.rows]}
        return known | {"num_chunks": self.chunks, "fps": self.fps}


@dataclass(frozen=True)
class BadRow:
    """A row that is no job: its id or number, and why, in one sentence."""

    id: str
    message: str


def read_jobs(path: Path, defaults: Mapping[str, str], sizes: Sizes) -> list[Job | BadRow]:
    """Every row of a table, in its order.

    Args:
        defaults: cells of rows that have none in that column.
        sizes: given a model's name, its usual width and height.

    Raises:
        HeliosError: no such file, no table, a column that is unknown or missing, or no row.
    """
    rows = read_table(path)
    columns = dict.fromkeys(column for row in rows if isinstance(row, dict) for column in row)
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise HeliosError(
            f"{path} has the column {shortened(unknown[0])}, which is unknown; rename or remove it: columns are "
            f"{', '.join(COLUMNS)}."
        )
    if not {"prompt", "prompt_schedule"} & columns.keys():
        raise HeliosError(f"{path} has no row with a prompt; fill the column prompt or prompt_schedule.")
    jobs: list[Job | BadRow] = []
    taken: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        job = row if isinstance(row, BadRow) else job_of(row, number, path.parent, defaults, sizes)
        before = taken.setdefault(job.id, number)
        if before != number:
            job = BadRow(f"row {number}", f"its id {job.id} is row {before}'s too; give each row its own.")
        jobs.append(job)
    return jobs


def read_table(path: Path) -> list[dict[str, str] | BadRow]:
    """The rows of a CSV file with a header, or of JSON lines (``.jsonl``), as text by column; empty cells are absent.

    Raises:
        HeliosError: absent, too large, or no such table.
    """
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise HeliosError(f"{path} is no file of at most {LARGEST:,} bytes; give a CSV file or JSON lines.")
        text = path.read_text(encoding="utf-8-sig")
        return list(_json_rows(text) if path.suffix == ".jsonl" else _csv_rows(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HeliosError(f"{path} cannot be read ({reason(error)}); give a CSV file or JSON lines.") from None


def _csv_rows(text: str) -> Iterator[dict[str, str] | BadRow]:
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
        if None in row:  # what csv calls the cells beyond the header's
            yield BadRow(f"row {number}", "it has more cells than there are columns; quote texts that have commas.")
        else:
            yield _filled({column.strip(): (cell or "").strip() for column, cell in row.items()})


def _json_rows(text: str) -> Iterator[dict[str, str] | BadRow]:
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield _filled({column: _cell(value) for column, value in row.items()})
        else:
            yield BadRow(f"row {number}", "it is no JSON object; write one object a line.")


def _filled(row: Mapping[str, str]) -> dict[str, str]:
    return {column: cell for column, cell in row.items() if cell}


def _cell(value: Any) -> str:
    """A JSON value as a CSV file would have it."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else value.strip() if isinstance(value, str) else json.dumps(value)


def job_of(
    row: Mapping[str, str], number: int, folder: Path, defaults: Mapping[str, str], sizes: Sizes
) -> Job | BadRow:
    """A row's job; paths in it begin at ``folder``, the rest is as for :func:`read_jobs`."""
    name = row.get("id", f"{number:04}")
    # A length in one column is no reason to refuse the default of another.
    has_length = any(column in row for column in LENGTHS)
    usual = {column: cell for column, cell in defaults.items() if not (has_length and column in LENGTHS)}
    try:
        return _Cells({**usual, **row}).job(name, folder, sizes)
    except HeliosError as error:
        return BadRow(name, str(error))


class _Cells:
    """A row's cells, each read as what its column holds."""

    def __init__(self, cells: Mapping[str, str]):
        self._cells = cells

    def job(self, name: str, folder: Path, sizes: Sizes) -> Job:
        model = self._text("model")
        width, height = sizes(model)
        fps = self._number("fps", FPS)
        return Job(
            id=name,
            rows=self._rows(),
            model=model,
            width=self._whole("width", width),
            height=self._whole("height", height),
            frames=self._frames(fps),
            negative_prompt=self._cells.get("negative_prompt"),
            blend=self._whole("blend", DEFAULT_BLEND),
            image=self._path("image", folder),
            video=self._path("video", folder),
            seed=self._whole("seed", 0),
            seed_changes=self._text("seed_changes"),
            steps=tuple(self._count("steps", part) for part in self._text("steps").replace(",", " ").split()),
            guidance=self._number("guidance", None),
            fps=fps,
            crf=self._number("crf", 18.0),
        )

    def _rows(self) -> tuple[tuple[int, str], ...]:
        prompt, schedule = self._text("prompt"), self._text("prompt_schedule")
        if prompt and schedule:
            raise HeliosError("prompt and prompt_schedule are both given; leave one of them empty.")
        return tuple(parse_schedule(schedule)) if schedule else ((0, prompt),)

    def _frames(self, fps: float) -> int:
        given = [column for column in LENGTHS if column in self._cells]
        if len(given) > 1:
            raise HeliosError(f"{given[0]} and {given[1]} are both given; leave one of them empty.")
        if not given:
            raise HeliosError(f"its length is not given; fill one of the columns {', '.join(LENGTHS)}.")
        if given[0] == "seconds":
            frames = self._number("seconds", 0.0) * fps
            if not 0 < frames < math.inf:
                raise HeliosError(f"seconds={self._text('seconds')} must be above 0, and finite.")
            return math.ceil(frames)
        return self._whole(given[0], 0) * (CHUNK_FRAMES if given[0] == "chunks" else 1)

    def _path(self, column: str, folder: Path) -> str:
        text = self._text(column)
        try:
            return str((folder / text).resolve()) if text else ""
        except (OSError, ValueError) as error:
            raise HeliosError(f"{column}={shortened(text)} is no path ({reason(error)}); correct it.") from None

    def _text(self, column: str) -> str:
        return self._cells.get(column, "")

    def _whole(self, column: str, default: int) -> int:
        return self._count(column, self._cells[column]) if column in self._cells else default

    @staticmethod
    def _count(column: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
            raise HeliosError(f"{column}={shortened(text)} is no whole number of at least 0.")
        return int(text)

    def _number(self, column: str, default: Any) -> Any:
        if column not in self._cells:
            return default
        try:
            number = float(self._cells[column])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise HeliosError(f"{column}={shortened(self._cells[column])} is no finite number.")
        return number
