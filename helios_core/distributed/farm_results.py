"""Results of a farm: a manifest beside the films, one JSON object a line, in which a later line replaces an earlier."""

from __future__ import annotations

import json
from typing import Any

from ..errors import HeliosError
from ..networks.settings import readable_lines
from .farm_worker import FarmFolder, Outcome
from .jobs import Job

MANIFEST = "farm.jsonl"


class FarmResults:
    """What earlier runs made in ``folder``, and what this one makes.

    Raises:
        HeliosError: the folder cannot be made or read.
    """

    def __init__(self, folder: FarmFolder):
        self._folder, self._path = folder, folder.output / MANIFEST
        try:
            folder.output.mkdir(parents=True, exist_ok=True)
            self._end_last_line()
            self._known = {line["id"]: line for line in readable_lines(self._path) if isinstance(line.get("id"), str)}
        except OSError as error:
            raise HeliosError(f"--output {folder.output} cannot be used ({error.strerror}); choose another.") from None

    def _end_last_line(self) -> None:
        """A run that was killed may have left half a line, which the next is not to continue."""
        if self._path.is_file() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("a") as file:
                file.write("\n")

    def has(self, job: Job, key: str) -> bool:
        """Whether the job's film is there, as an earlier run left it."""
        line = self._known.get(job.id, {})
        try:
            size = self._folder.film(job).stat().st_size
        except OSError:
            return False
        return (line.get("status"), line.get("key"), line.get("bytes")) == ("finished", key, size)

    def add(self, outcome: Outcome, key: str) -> None:
        """Notes how a job ended.

        Raises:
            HeliosError: the manifest cannot be written.
        """
        line: dict[str, Any] = {**outcome.event(), "key": key}
        del line["event"]
        film = self._folder.output / f"{outcome.id}.mp4"
        try:
            if outcome.status == "finished":
                line |= {"video": film.name, "bytes": film.stat().st_size}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise HeliosError(
                f"manifest {self._path} cannot be written ({error.strerror}); free space there, then run again: "
                "finished films are kept."
            ) from None
