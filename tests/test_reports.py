"""A report that holds what UTF-8 cannot ends no run."""

import os
import subprocess
import sys

from helios_setup.paths import ROOT

TESTS = """
import logging
import warnings

HALF = "\\ud800"


def test_fails():
    raise ValueError(f"wrong {HALF}")


def test_compares():
    assert f"left {HALF}" == "right"


def test_logs():
    logging.getLogger("helios").warning("log %s", HALF)


def test_warns():
    warnings.warn(f"warning {HALF}")


def test_is_the_last():
    print("end")
"""


def test_lone_surrogates(tmp_path):
    """Failures, captured logs and warnings of one process arrive in the other, and the run goes on."""
    (tmp_path / "test_hostile.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "escaped_reports", "-n", "1", "-rA", "-p", "no:cacheprovider", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert "2 failed, 3 passed, 1 warning" in done.stdout, done.stdout + done.stderr
    for text in ("wrong", "left", "log", "warning"):
        assert f"{text} \\ud800" in done.stdout, text
