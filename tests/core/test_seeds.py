"""Seed changes: what the text says, and what it refuses."""

import pytest

from helios_core.errors import HeliosError
from helios_core.take.seed_changes import MAX_SEED, parse_seed_changes, seed_at


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("", ()),
        (" \n ", ()),
        ("7: 123, 9: 5", ((7, 123), (9, 5))),
        ("9:5\n7 : 123", ((7, 123), (9, 5))),
        ("0: 1; 3: 2,", ((0, 1), (3, 2))),
        (f"1: {MAX_SEED}", ((1, MAX_SEED),)),
    ],
)
def test_text(text, changes):
    assert parse_seed_changes(text) == changes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seven: 1", "'seven: 1'"),
        ("7", "'7'"),
        ("7: -1", "'7: -1'"),
        ("7: 1.5", "'7: 1.5'"),
        ("7: 1: 2", "'7: 1: 2'"),
        ("2: 3, 2: 4", "chunk 2 twice"),
        (f"1: {MAX_SEED + 1}", "the largest is"),
        ("1: " + "9" * 10000, "not a chunk and its seed"),
        ("1: " + "9" * 20, "the largest is"),
        ("７: 1", "'７: 1'"),
    ],
)
def test_what_is_no_change_is_refused_in_one_sentence(text, words):
    with pytest.raises(HeliosError, match="seed_changes") as refused:
        parse_seed_changes(text)
    message = str(refused.value)
    assert words in message and message.count(". ") == 0 and len(message) < 200


def test_seed_in_force():
    changes = parse_seed_changes("3: 10, 5: 20")
    assert [seed_at(changes, chunk, 1) for chunk in range(7)] == [1, 1, 1, 10, 10, 20, 20]
    assert seed_at((), 4, 9) == 9
