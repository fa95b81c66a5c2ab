"""The short profile gives the same examples whatever else runs in the process."""

import subprocess
import sys
from pathlib import Path

import pytest

DRAW = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("profiles", sys.argv[1])
profiles = importlib.util.module_from_spec(spec)
spec.loader.exec_module(profiles)
profiles.register()
for folder, name in zip(sys.argv[2::2], sys.argv[3::2]):
    sys.path.insert(0, folder)
    __import__(name)
from hypothesis import given, strategies as st

@profiles.tries(100)
@given(text=st.text(), number=st.integers(), real=st.floats(), data=st.binary())
def draw(**values):
    print(ascii(values))

draw()
"""


def drawn(*loaded, profile="ci"):
    command = [sys.executable, "-c", DRAW, str(Path(__file__).with_name("profiles.py")), *loaded]
    environment = {"PATH": "", "HYPOTHESIS_PROFILE": profile}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.splitlines()


@pytest.fixture
def module(tmp_path):
    """A module outside site-packages, which hypothesis takes for code under test."""
    constants = ", ".join(repr(f"constant {number}") for number in range(200))
    (tmp_path / "constants_to_draw.py").write_text(f"NAMES = [{constants}]\n")
    return str(tmp_path), "constants_to_draw"


def test_examples_do_not_depend_on_what_is_loaded(module):
    examples = drawn()
    assert len(examples) >= 100
    assert drawn(*module) == examples


def test_long_profile_is_random():
    assert drawn(profile="long") != drawn(profile="long")
