"""A CONDITIONING that changes from chunk to chunk: the prompt schedule that it carries."""

from __future__ import annotations

from ...helios_core.errors import HeliosError, shortened
from ...helios_core.take.prompts import MOST_DIGITS, PromptSchedule, mix_embeddings

SCHEDULE_KEY = "helios_schedule"


def schedule_of(conditioning: list) -> PromptSchedule[list]:
    """The schedule a CONDITIONING carries; a plain one is a schedule of one row."""
    for _, options in conditioning:
        if SCHEDULE_KEY in options:
            return options[SCHEDULE_KEY]
    return PromptSchedule(((0, conditioning),))


def conditioning_at(conditioning: list, chunk: int) -> list:
    """The plain CONDITIONING in force at ``chunk``."""
    return schedule_of(conditioning).at(chunk, _mix)


def scheduled(schedule: PromptSchedule[list]) -> list:
    """A CONDITIONING that carries ``schedule``; core's own samplers see its first row."""
    first = schedule.rows[0][1]
    return [[text, {**options, SCHEDULE_KEY: schedule}] for text, options in first]


def _mix(previous: list, new: list, weight: float) -> list:
    if len(previous) != 1 or len(new) != 1:
        raise HeliosError(
            "a prompt schedule row combines several conditionings, which cannot be blended; set blend to 0 or use "
            "one prompt a row."
        )
    return [[mix_embeddings(previous[0][0], new[0][0], weight), new[0][1]]]


def starts_of_rows(text: str, rows: int) -> list[int]:
    """The chunk that each of ``rows`` rows begins at; numbers beyond them are ignored.

    Raises:
        HeliosError: no list of numbers, or too few.
    """
    starts = parse_chunks(text)
    if len(starts) < rows:
        raise HeliosError(
            f"first_chunks={shortened(text)} has {len(starts)} numbers for {rows} rows; give one per row."
        )
    return starts[:rows]


def parse_chunks(text: str) -> list[int]:
    """``"0, 7, 14"`` -> [0, 7, 14]."""
    parts = [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) <= MOST_DIGITS for part in parts):
        raise HeliosError(f"first_chunks={shortened(text)} is not a list of chunk numbers; write it like '0, 7, 14'.")
    return [int(part) for part in parts]
