"""``--alone``: every test in a process of its own, as if it were the only one.

A plugin of pytest. A test's process is forked when all tests are collected and none has run: no fixture, cache,
environment variable or file of another test is there, and what modules do at import was done once. POSIX only.
"""

from __future__ import annotations

import os
import pickle
import shutil
import traceback
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

# What a test's process has to say, in its folder: a pipe would stay open as long as any process that it leaves behind.
SAID = "said.pickle"


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--alone") and os.environ.get("OMP_NUM_THREADS") != "1":
        raise pytest.UsageError("--alone: set OMP_NUM_THREADS=1; a forked process waits for threads that it has not.")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if not item.config.getoption("--alone"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> list[pytest.TestReport]:
    """What a process says of the test; of one that ended before it said anything, a failure."""
    factory = item.config._tmp_path_factory  # type: ignore[attr-defined]
    folder = factory.mktemp("alone")
    process = os.fork()
    if not process:
        _run(item, folder)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        said = pickle.loads((folder / SAID).read_bytes())
    except (OSError, EOFError):
        said = f"its process ended with {status}"
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(said, str):
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", said, "call")]
    return [item.config.hook.pytest_report_from_serializable(config=item.config, data=part) for part in said]


def _run(item: pytest.Item, folder: Path) -> None:
    """In the test's process: everything from its first fixture to the end of its last."""
    config = item.config
    config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]
    said: Any
    try:
        reports: list[Any] = runtestprotocol(item, log=False, nextitem=None)
        said = [config.hook.pytest_report_to_serializable(config=config, report=report) for report in reports]
    except BaseException:
        said = traceback.format_exc()
    (folder / SAID).write_bytes(pickle.dumps(said))
