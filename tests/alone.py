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
from typing import Any, BinaryIO

import pytest
from _pytest.runner import runtestprotocol


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
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        with os.fdopen(writer, "wb") as out:
            _run(item, folder, out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        data = said.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    shutil.rmtree(folder, ignore_errors=True)
    hook = item.config.hook
    if data:
        return [hook.pytest_report_from_serializable(config=item.config, data=part) for part in pickle.loads(data)]
    return [pytest.TestReport(item.nodeid, item.location, {}, "failed", f"its process ended with {status}", "call")]


def _run(item: pytest.Item, folder: Path, out: BinaryIO) -> None:
    """In the test's process: everything from its first fixture to the end of its last."""
    config = item.config
    config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]
    try:
        reports: list[Any] = runtestprotocol(item, log=False, nextitem=None)
        data = [config.hook.pytest_report_to_serializable(config=config, report=report) for report in reports]
        out.write(pickle.dumps(data))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
