"""The environment's pip: what it fetches, in bytes, and why it failed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from helios_setup.errors import SetupError
from helios_setup.paths import ROOT, VENV, venv_program

# The first that goes on with a file whose connection broke, and that counts bytes for a program to read.
RESUMING_PIP = (25, 1)
RESUME_RETRIES = 20
LOG = VENV / "helios-setup.log"
MB = 1e6
SHOWN_AT_LEAST = 20 * MB  # smaller files are over before a line about them is read
NETWORK_SIGNS = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "ReadTimeoutError",
    "ConnectTimeoutError",
    "ProxyError",
    "getaddrinfo failed",
    "incomplete-download",
)


def say(message: str) -> None:
    print(message, flush=True)


def pip_is_old() -> bool:
    """Whether the environment's pip cannot resume a download."""
    names = [path.name for path in VENV.glob("**/site-packages/pip-*.dist-info")]
    versions = [re.findall(r"\d+", name) for name in names]
    return not any((int(major), int(minor)) >= RESUMING_PIP for major, minor, *_ in versions)


def upgrade_pip() -> None:
    """Bring the environment's pip to one that resumes downloads."""
    run_pip("Updating pip", "install", "pip>=" + ".".join(map(str, RESUMING_PIP)), resuming=False)


def run_pip(title: str, *arguments: str, resuming: bool = True) -> None:
    """Run the environment's pip, showing what it fetches; index, proxy and cache are the user's own.

    A broken connection is taken up where it broke; after a kill, files that had come whole are in pip's cache.

    Raises:
        SetupError: pip failed; the message says why as far as it can be told.
    """
    say(f"{title} ...")
    options = ["--progress-bar", "raw", "--resume-retries", str(RESUME_RETRIES)] if resuming else []
    command = [str(venv_program("python")), "-m", "pip", "--no-input", arguments[0], *options, *arguments[1:]]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    if not resuming:
        environment["PIP_PROGRESS_BAR"] = "off"
    output: list[str] = []
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        errors="replace", env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    progress = DownloadProgress()
    try:
        with LOG.open("a", encoding="utf-8") as log:
            for line in lines_of(process.stdout):
                if progress.take(line):
                    continue
                output.append(line)
                log.write(line + "\n")
                if line.strip().startswith(("Downloading ", "Using cached ", "Building ", "Installing collected")):
                    progress.started(line.strip())
        code = process.wait()
    finally:
        progress.close()
        if process.poll() is None:
            process.terminate()
    if code != 0:
        raise SetupError(f"{title} failed: {pip_failure(output)} (full log: {LOG})")


def lines_of(stream: IO[str]) -> Iterator[str]:
    for line in stream:
        yield line.rstrip()


class DownloadProgress:
    """pip's raw progress lines (`Progress 512 of 1024`) as megabytes of the file and of all files so far."""

    _LINE = re.compile(r"Progress (\d+) of (\d+)$")

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._file = ""
        self._of_file = 0
        self._finished = 0
        self._tenth = 0

    def started(self, line: str) -> None:
        """A line of pip about a file or a step, shown as it is."""
        self._end_file()
        self._file = Path(line.split(" ")[1]).name if line.startswith("Downloading ") else ""
        say(f"  {line[:108]}")

    def take(self, line: str) -> bool:
        """Whether the line is one of progress, which is then shown."""
        match = self._LINE.match(line.strip())
        if match is None:
            return False
        done, whole = int(match[1]), int(match[2])
        self._of_file = done
        total = self._finished + done
        text = f"  {self._file[:48]} {done / MB:.0f} of {whole / MB:.0f} MB, {total / MB:.0f} MB in all"
        if self._terminal:
            print(f"\r{text}", end="\x1b[K", flush=True)
        elif whole >= SHOWN_AT_LEAST and (tenth := done * 10 // whole) > self._tenth:
            # A log file gets a line for every tenth, not for every block.
            say(text)
            self._tenth = tenth
        return True

    def _end_file(self) -> None:
        self._finished += self._of_file
        if self._terminal and self._of_file:
            print("\r", end="\x1b[K", flush=True)
        self._of_file = self._tenth = 0

    def close(self) -> None:
        self._end_file()
        if self._finished:
            say(f"  {self._finished / MB:.0f} MB downloaded.")


def pip_failure(output: list[str]) -> str:
    """The reason in pip's output, in a few words and with a remedy."""
    text = "\n".join(output)
    if "No space left on device" in text:
        return "the disk is full, free some space and run again"
    if any(sign in text for sign in NETWORK_SIGNS):
        return "the package index cannot be reached, check the network or pip's index and proxy settings"
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in text:
        return "the package index serves another file than the pinned one, use an index that mirrors PyPI"
    errors = [line for line in output if line.upper().startswith("ERROR:")]
    return errors[-1][len("ERROR:") :].strip() if errors else "pip gave no reason"
