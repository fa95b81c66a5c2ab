"""The module that child processes run, for the tests too."""

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("helios_parallel_child", Path(__file__).with_name("child.py"))
assert spec is not None and spec.loader is not None
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
