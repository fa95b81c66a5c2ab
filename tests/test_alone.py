"""What ``--alone`` tells of tests that pass, fail, die, or leave a process behind."""

import os
import subprocess
import sys

import pytest

from helios_setup.paths import ROOT

OPTION = "def pytest_addoption(parser): parser.addoption('--alone', action='store_true')"
TESTS = """
import os
import time

SEEN = []


def test_first():
    SEEN.append(1)


def test_second():
    assert not SEEN


def test_fails():
    raise ValueError("wrong")


def test_dies():
    os._exit(7)


def test_leaves_a_process_behind():
    if not os.fork():
        time.sleep(60)
        os._exit(0)
"""


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_each_in_its_process(tmp_path):
    (tmp_path / "conftest.py").write_text(OPTION, encoding="utf-8")
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "alone", "--alone", "-p", "no:cacheprovider"]
    with (tmp_path / "said.txt").open("w+", encoding="utf-8") as out:  # a pipe would wait for the process left behind
        subprocess.run([*command, "."], cwd=tmp_path, env=environment, stdout=out, stderr=out, check=False, timeout=50)
        out.seek(0)
        said = out.read()
    assert "2 failed, 3 passed" in said, said
    assert "ValueError: wrong" in said and "its process ended with 7" in said
