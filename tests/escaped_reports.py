"""Fuzzed texts reach logs, failures and warnings, and a process of pytest-xdist ends on a text that is not UTF-8.

A plugin of pytest: what a report says is escaped before it leaves its process.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from typing import Any

import pytest


def printable(value: Any) -> Any:
    """``value`` with every lone surrogate in its texts written as an escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return type(value)(map(printable, value)) if type(value) in (list, tuple) else value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
    return printable((yield))


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    if isinstance(warning_message.message, Warning):
        warning_message.message.args = printable(warning_message.message.args)
