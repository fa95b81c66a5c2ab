"""A farm from within ComfyUI: ``python -m helios_core farm`` in a process of its own, told what it does line by line.

The server itself never loads Ray, and a cluster that fails cannot take it along.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import comfy.model_management

from ...helios_core.errors import HeliosError, shortened
from ...helios_core.take.store import make_folder
from .model_files import RELEASED, TINY_NAMES, installed_folders, small_folders

# Of the server, never of a workflow: a shared one cannot send what is written in it elsewhere.
ADDRESS_VARIABLE = "HELIOS_RAY_ADDRESS"
GPUS_VARIABLE = "HELIOS_GPUS_PER_FILM"
ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS, STOP_SECONDS = 0.1, 15.0

Event = Mapping[str, Any]


def farm_models() -> list[str]:
    """Models that a farm's workers may have: folders of this machine, models of the pack, and released ones."""
    return list(dict.fromkeys([*RELEASED, *installed_folders(), *small_folders(), *TINY_NAMES]))


def farm_model(name: str) -> str:
    """What the farm calls a choice of :func:`farm_models`; a released one that is not here is taken from the cache."""
    folder = installed_folders().get(name)
    return str(folder.resolve()) if folder is not None else RELEASED.get(name, name)


def cluster_address() -> str:
    """The Ray cluster that the server's environment names; empty for this machine alone (``local``).

    Raises:
        HeliosError: it names none, or Ray is not installed.
    """
    address = os.environ.get(ADDRESS_VARIABLE, "").strip()
    if not address:
        raise HeliosError(
            f"{ADDRESS_VARIABLE} is not set in the server's environment; set it to the Ray cluster's HOST:PORT, or to "
            "local to use this machine alone, and start ComfyUI again."
        )
    if importlib.util.find_spec("ray") is None:
        raise HeliosError('Helios Farm Render needs Ray, which is not installed; run pip install "ray[serve]".')
    return "" if address == "local" else address


def gpus_per_film() -> str:
    """How many GPUs make each film together, by the server's environment.

    Raises:
        HeliosError: it names no number.
    """
    text = os.environ.get(GPUS_VARIABLE, "").strip() or "1"
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text)):
        raise HeliosError(
            f"{GPUS_VARIABLE}={shortened(text)} in the server's environment is no number of GPUs; set 1 or more, or "
            "leave it unset, and start ComfyUI again."
        )
    return text


def farmed(rows: Sequence[Mapping[str, Any]], folder: Path, store: Path, address: str) -> Iterator[Event]:
    """Events of a farm, as ``python -m helios_core farm --json`` tells them, until it ends.

    Closing the iterator, or an interrupt of ComfyUI, ends the farm; finished chunks are kept.

    Args:
        rows: its table.
        folder: where films go; with ``store`` the one that all workers see.

    Raises:
        HeliosError: the farm did not begin, or broke off.
    """
    try:
        make_folder(folder)
        jobs = folder / f"{uuid.uuid4().hex}.jsonl"
        jobs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise HeliosError(f"{folder} cannot be written ({error.strerror}); free space there.") from None
    command = [sys.executable, "-m", "helios_core", "farm", str(jobs), "--json"]
    command += ["--output", str(folder), "--store", str(store), *(["--address", address] if address else [])]
    command += ["--gpus-per-film", gpus_per_film()]
    try:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True)
            try:
                yield from _lines(process)
                code = process.wait()
            finally:
                _stop(process)
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
    finally:
        jobs.unlink(missing_ok=True)
    if code:
        raise HeliosError(
            text.splitlines()[-1].removeprefix("error: ") if text else f"the farm ended with code {code}."
        )


def _lines(process: subprocess.Popen[str]) -> Iterator[Event]:
    """Each line's object as it comes; looks for an interrupt meanwhile."""
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), name="helios-farm", daemon=True).start()
    while True:
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            return
        with contextlib.suppress(ValueError):  # a library that writes to standard output
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                yield event


def _read(stdout: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stdout:
        lines.put(line)
    lines.put(None)


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
