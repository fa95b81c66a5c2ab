"""The oldest ComfyUI: said in one place and told in one sentence, before the nodes are imported."""

import re
import subprocess
import sys

import pytest

from helios_setup.paths import ROOT
from helios_setup.supported import OLDEST_COMFYUI, check_comfyui


def test_what_managers_of_packs_read_is_what_is_checked():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^requires-comfyui = "(.*)"$', text, re.M) == [f">={OLDEST_COMFYUI}"]
    assert f"ComfyUI {OLDEST_COMFYUI}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", ["0.26.9", "0.3.75", "v0.26", "0.9.0-rc1", "0"])
def test_older_ones_are_refused(version):
    with pytest.raises(ImportError, match=rf"needs ComfyUI {OLDEST_COMFYUI} or newer and this is {version}"):
        check_comfyui(version)


@pytest.mark.parametrize("version", ["0.27.0", "0.27", "0.100.1", "1.0", "v0.30.0-12-gabc", "unknown", ""])
def test_others_are_let_through(version):
    check_comfyui(version)


def test_the_pack_says_so_before_its_nodes_are_imported(tmp_path):
    """As ComfyUI imports it, beside a core that says it is old and has nothing else."""
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.26.0"')
    script = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pack", {str(ROOT / "__init__.py")!r},
                                              submodule_search_locations=[{str(ROOT)!r}])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stderr.strip().splitlines()[-1].startswith("ImportError: Helios needs ComfyUI 0.27.0 or newer")
