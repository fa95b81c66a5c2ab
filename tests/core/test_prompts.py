"""Prompt schedules: the reference's blending formula, row order, and the text form."""

import csv
import time
from itertools import groupby
from pathlib import Path

import pytest
import torch

from helios_core.errors import HeliosError
from helios_core.take.prompts import PromptSchedule, mix_embeddings, parse_schedule

REAL = Path(__file__).resolve().parents[3] / "shared" / "prompts" / "interactive.csv"


def embeddings(count):
    return [torch.randn(1, 512, 8, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("blend", [2, 3, 4])
def test_blending_equals_the_references_linspace(blend):
    """The reference mixes with torch.lerp at linspace(0, 1, blend) over the chunks after a change."""
    a, b = embeddings(2)
    schedule = PromptSchedule(((0, a), (7, b)), blend)
    mixed = torch.lerp(a, b, torch.linspace(0, 1, blend)[:, None, None])
    for chunk in range(7):
        assert torch.equal(schedule.at(chunk, mix_embeddings), a)
    for i in range(blend):
        assert torch.allclose(schedule.at(7 + i, mix_embeddings), mixed[i : i + 1], atol=1e-6)
    assert schedule.at(10_000, mix_embeddings) is b, "past the last row the last prompt stays"


@pytest.mark.parametrize("blend", [0, 1])
def test_no_blend_changes_at_once(blend):
    schedule = PromptSchedule(((0, "a"), (2, "b")), blend)
    assert [schedule.at(i, pytest.fail) for i in range(4)] == ["a", "a", "b", "b"]


def test_changing_a_row_leaves_earlier_chunks_alone():
    a, b, c, d = embeddings(4)
    before = PromptSchedule(((0, a), (3, b), (6, c)))
    after = PromptSchedule(((0, a), (3, b), (6, d)))
    same = [torch.equal(before.at(i, mix_embeddings), after.at(i, mix_embeddings)) for i in range(9)]
    # At its first chunk a new prompt has weight 0.
    assert same == [True] * 7 + [False] * 2


def test_text_form():
    expected = [(0, "a boat"), (7, "a storm at 16:9"), (14, "calm")]
    assert parse_schedule("0: a boat / 7: a storm at 16:9 / 14: calm") == expected
    assert parse_schedule(" 0:a boat\n7 : a storm at 16:9\n14: calm\n") == expected
    assert parse_schedule("just a boat/ship") == [(0, "just a boat/ship")]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0: a" + "\n" * 150_000 + "x", 1),
        ("0: a" + " \n" * 150_000 + "x", 1),
        ("0: a\n" + "1 " * 150_000 + "x", 1),
        ("0: a\n" + "1" * 60_000 + " " * 60_000, 1),
        ("0: a\n" + "".join(f"{i}: b\n" for i in range(1, 20_000)), 20_000),
        ("0: a" + "".join(f"{' ' * 9} / {i}: b" for i in range(1, 20_000)), 20_000),
    ],
    ids=["breaks", "spaces and breaks", "numbers", "digits", "lines", "slashes"],
)
def test_text_form_is_read_in_linear_time(text, rows):
    begun = time.monotonic()
    assert len(parse_schedule(text)) == rows
    assert time.monotonic() - begun < 30


def test_real_interactive_prompts_survive_the_text_form():
    if not REAL.is_file():
        pytest.skip("needs the shared prompt file interactive.csv")
    with REAL.open(newline="", encoding="utf-8") as file:
        for _, group in groupby(csv.DictReader(file), key=lambda row: row["id"]):
            rows = [(7 * i, row["prompt"].strip()) for i, row in enumerate(group)]
            assert parse_schedule("\n".join(f"{first}: {prompt}" for first, prompt in rows)) == rows
            PromptSchedule(tuple(rows))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptSchedule(((1, "a"),)), "begins at chunk 1"),
        (lambda: PromptSchedule(()), "begins at chunk"),
        (lambda: PromptSchedule(((0, "a"), (7, "b"), (5, "c"))), "row at chunk 5 follows the row at chunk 7"),
        (lambda: PromptSchedule(((0, "a"), (0, "b"))), "row at chunk 0 follows the row at chunk 0"),
        (lambda: PromptSchedule(((0, "a"),), -1), "blend=-1"),
        (lambda: parse_schedule("a boat\n7: a storm"), "text before its first row"),
        (lambda: parse_schedule("0: a boat\n7:"), "row 7 has no prompt"),
        (lambda: parse_schedule("0: a boat\n" + "9" * 5000 + ": b"), r"row at chunk '9{20}'\.\.\.; no film"),
        (lambda: parse_schedule("x" * 100_000 + "\n7: b"), r"before its first row \('x{40}'\.\.\.\)"),
    ],
)
def test_bad_schedules_are_named(make, message):
    with pytest.raises(HeliosError, match=message):
        make()
