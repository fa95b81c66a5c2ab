"""web/*.js passes eslint and TypeScript's check of its type comments, as tools/web configures them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools" / "web"
CONFIG = TOOLS / "eslint.config.js"
ESLINT = TOOLS / "node_modules" / "eslint" / "bin" / "eslint.js"
TSC = TOOLS / "node_modules" / "typescript" / "bin" / "tsc"


@pytest.fixture(scope="module")
def node() -> str:
    """The program that runs the tools, which `run.py test` installs."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node on PATH (Debian: apt install nodejs npm)")
    if not ESLINT.is_file() or not TSC.is_file():
        pytest.skip("the linter is not installed: npm ci --prefix tools/web")
    return found


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_modules_pass_the_linter(node: str) -> None:
    done = run(node, ESLINT, "--config", CONFIG, "--max-warnings", "0", "web")
    assert done.returncode == 0, done.stdout + done.stderr


def test_type_comments_are_right(node: str) -> None:
    done = run(node, TSC, "--project", TOOLS / "tsconfig.json")
    assert done.returncode == 0, done.stdout + done.stderr


def test_linter_and_types_can_fail(node: str, tmp_path: Path) -> None:
    bad = "window.Node.prototype.x = () => eval('1')\n"
    done = run(node, ESLINT, "--config", CONFIG, "--stdin", "--stdin-filename", "web/bad.js", input=bad)
    assert done.returncode == 1 and "no-eval" in done.stdout and "no-restricted-properties" in done.stdout
    wrong = tmp_path / "wrong.js"
    wrong.write_text("/** @type {number} */\nexport const wrong = 'text'\n", encoding="utf-8")
    done = run(node, TSC, "--checkJs", "--allowJs", "--noEmit", wrong)
    assert done.returncode != 0 and "TS2322" in done.stdout
