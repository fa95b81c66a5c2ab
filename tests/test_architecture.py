"""ARCHITECTURE.md names what is there, and the rules at its end hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "helios_core"
PRODUCT = [*sorted(CORE.rglob("*.py")), *sorted((ROOT / "nodes").rglob("*.py"))]
MOST_LINES, MOST_ENTRIES = 350, 12
# Named on a command line and imported by nobody, so that it may bring rooms together as __main__ does.
ENTRY_POINTS = {CORE / "distributed" / "serve.py"}


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def mentions() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return sorted(
        {found for found in re.findall(r"`([^`\s]+)`", text) if "/" in found or found.endswith((".py", ".md"))}
    )


@pytest.mark.parametrize("mention", mentions())
def test_what_the_page_names_is_there(mention):
    place, _, name = mention.partition(":")
    if "*" in place:
        assert list(ROOT.glob(place))
        return
    assert (ROOT / place).exists()
    body = tree(ROOT / place).body if name else []
    for part in name.split(".") if name else []:
        found = [node for node in body if getattr(node, "name", None) == part]
        assert found, f"{place} has no {part}"
        body = found[0].body


def test_the_page_names_every_room():
    rooms = {path.name for path in CORE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {f"helios_core/{room}/" for room in rooms} <= set(mentions())


def test_the_house_is_small():
    entries = [path for path in CORE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    long = {str(file): count for file in PRODUCT if (count := len(file.read_text().splitlines())) > MOST_LINES}
    assert not long


def imported(file: Path) -> Iterator[str]:
    """The product's modules, dotted from the checkout, that a file imports at module level or below."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                below = f"{module}.{alias.name}"
                yield below if module_file(below) else module


def module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def graph() -> dict[Path, set[Path]]:
    lazy = {CORE / "__init__.py"}  # imports the pipeline at the first use
    files = [file for file in PRODUCT if file not in lazy]
    return {file: {f for m in imported(file) if (f := module_file(m)) and f in files and f != file} for file in files}


def circle(edges: dict) -> list | None:
    """A path that ends where it began."""
    done: set = set()

    def walk(node, path: list) -> list | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for following in sorted(edges.get(node, ()), key=str):
            if found := walk(following, [*path, node]):
                return found
        done.add(node)
        return None

    return next((found for node in edges if (found := walk(node, []))), None)


def test_a_circle_is_found():
    assert circle({1: {2}, 2: {3}, 3: {1}}) == [1, 2, 3, 1]
    assert circle({1: {2, 3}, 2: {3}, 3: set()}) is None


def test_no_module_imports_in_a_circle():
    assert circle(graph()) is None


def test_no_room_imports_in_a_circle():
    def room(file: Path) -> str:
        parts = file.relative_to(ROOT).parts
        return "/".join(parts[:2]) if len(parts) > 2 or parts[0] == "helios_core" else "nodes"

    edges: dict[str, set[str]] = {}
    files = graph()
    assert not ENTRY_POINTS & {target for targets in files.values() for target in targets}
    for file, targets in files.items():
        if file in ENTRY_POINTS:
            continue
        edges.setdefault(room(file), set()).update(room(target) for target in targets if room(target) != room(file))
    assert circle(edges) is None


def test_the_library_knows_no_comfyui():
    foreign = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution", "latent_preview")
    for file in CORE.rglob("*.py"):
        for node in ast.walk(tree(file)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.split(".")[0] in foreign], file


def test_keys_and_the_history_after_a_chunk_are_made_in_one_place():
    def calls(name: str) -> list[str]:
        return [
            file.relative_to(ROOT).as_posix()
            for file in PRODUCT
            for node in ast.walk(tree(file))
            if isinstance(node, ast.Call) and name in (getattr(node.func, "id", None), getattr(node.func, "attr", None))
        ]

    assert calls("chunk_key") == ["helios_core/take/film.py"]
    # One per way to make a chunk, none in a loop.
    assert calls("after") == ["helios_core/take/source.py", "nodes/adapters/guider.py"]
    assert calls("put_chunk") == ["helios_core/take/take.py"]
