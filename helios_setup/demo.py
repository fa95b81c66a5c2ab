"""`run.py demo` and `serve`: ComfyUI over a model folder, and one workflow through its HTTP API."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from helios_core.commands.embedded import Embedded, embedded
from helios_core.variants import DEFAULT
from helios_setup.comfyui import link_folder
from helios_setup.environment import say
from helios_setup.errors import ExecutionFailedError, ServerDiedError, SetupError
from helios_setup.events import Event
from helios_setup.examples import write_examples
from helios_setup.paths import API_WORKFLOWS, OUTPUT
from helios_setup.server import ComfyServer, output_files
from helios_setup.workflow import fill_workflow, load_workflow, workflow_variant

BAR_WIDTH = 30
LOG_POLL_SECONDS = 0.5
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")


def demo(tree: Path, model: str | None, prompt: str | None, seconds: float | None, workflow: str) -> int:
    """Render a workflow in a ComfyUI started for it and print what was written; the exit code."""
    graph = load_workflow(API_WORKFLOWS, workflow)
    with tempfile.TemporaryDirectory(prefix="helios-demo-") as scratch:
        session = Path(scratch)
        own = None if model else embedded(workflow_variant(workflow))
        name, options = show_model(tree, model, own, session)
        if own is not None:
            prompt = prompt or own.prompt
        filled = fill_workflow(graph, name, prompt, seconds, size=own.size if own else None)
        arguments = server_arguments([*private_directories(session), *options])
        server = ComfyServer(tree, Path(sys.executable), session / "comfyui.log", arguments)
        say("Starting ComfyUI ...")
        with server:
            say(f"ComfyUI answers at {server.url}; rendering {workflow} with {name} ...")
            bar = ProgressBar(filled)
            try:
                entry = server.run(filled, timeout=float("inf"), on_event=bar.show)
            except ExecutionFailedError as error:
                bar.close()
                raise SetupError(str(error)) from error
            bar.close()
            return report(entry)


def serve(tree: Path, model: str | None, port: int, output: Path | None = None) -> NoReturn:
    """Run ComfyUI in the foreground until Ctrl-C, with the input files that the templates name.

    Args:
        output: where videos go; None is `output` in this checkout.

    Raises:
        ServerDiedError: it ended by itself.
    """
    with tempfile.TemporaryDirectory(prefix="helios-serve-") as scratch:
        session = Path(scratch)
        name, options = show_model(tree, model, None if model else embedded(DEFAULT.name), session)
        write_examples(tree / "input")
        log = session / "comfyui.log"
        arguments = server_arguments(options, OUTPUT if output is None else output_folder(output))
        server = ComfyServer(tree, Path(sys.executable), log, arguments, port)
        say("Starting ComfyUI ...")
        with server, log.open(encoding="utf-8", errors="replace") as lines:
            say(f"ComfyUI runs at {server.url} with {name}. Ctrl-C stops it.")
            while server.alive():
                sys.stdout.write(lines.read())
                sys.stdout.flush()
                time.sleep(LOG_POLL_SECONDS)
            raise ServerDiedError("ComfyUI has ended by itself; its log is above.")


def output_folder(folder: Path) -> Path:
    """The folder of `--output`, made where it is missing, as an absolute path: ComfyUI runs in its own folder.

    Raises:
        SetupError: it cannot be made, or is a file.
    """
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"--output is {folder}, which cannot be made ({error.strerror}): choose another.") from error
    return folder


def server_arguments(extra: list[str], output: Path = OUTPUT) -> list[str]:
    # Not at module level: run.py imports this file before torch is installed.
    import torch

    output.mkdir(exist_ok=True)
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    # ComfyUI's default attention on a CPU is several times slower than PyTorch's.
    on_cpu = [] if accelerated else ["--cpu", "--use-pytorch-cross-attention"]
    return [*on_cpu, "--output-directory", str(output), *extra]


def private_directories(session: Path) -> list[str]:
    """Options that keep a one-off server from a user's own settings, inputs, temporary files and database."""
    user, inputs = session / "user", session / "input"
    user.mkdir()
    write_examples(inputs)
    return [
        *("--user-directory", str(user), "--temp-directory", str(session), "--input-directory", str(inputs)),
        *("--database-url", "sqlite:///:memory:"),
    ]


def show_model(tree: Path, model: str | None, own: Embedded | None, session: Path) -> tuple[str, list[str]]:
    """Make `--model`, or the pack's own in its absence, one that ComfyUI lists.

    Returns:
        its name there, and the options ComfyUI needs for it.
    """
    if own is None:
        return reference_model(released_folder(model or ""), session)
    width, height = own.size
    say(f"No --model given: using {own.name}, {own.makes}, at {width}x{height}.")
    if own.folder is None:
        write_tiny_folder(tree / "models" / "diffusers" / own.name, own.variant)
    return own.name, []


def released_folder(value: str) -> Path:
    """The folder that `--model` names.

    Raises:
        SetupError: it has no model_index.json.
    """
    folder = Path(value).expanduser().resolve()
    if not (folder / "model_index.json").is_file():
        raise SetupError(f"--model is {value}, which has no model_index.json: give a released Helios folder.")
    return folder


def reference_model(folder: Path, session: Path) -> tuple[str, list[str]]:
    """Show a released folder to ComfyUI under models/diffusers without copying it.

    Returns:
        its name there, and the options that make ComfyUI look.
    """
    # A link in a folder of its own: naming the parent would make ComfyUI search all of it.
    diffusers = session / "diffusers"
    link_folder(folder, diffusers / folder.name)
    config = session / "extra_model_paths.yaml"
    # A JSON string is a YAML string too, whatever the path holds.
    # Default, so that it is found before a folder of the same name in the tree.
    text = f"helios:\n  is_default: true\n  diffusers: {json.dumps(str(diffusers))}\n"
    config.write_text(text, encoding="utf-8")
    return folder.name, ["--extra-model-paths-config", str(config)]


def write_tiny_folder(folder: Path, variant: str) -> None:
    """Write helios-tiny to `folder`, or keep it when it is that already.

    Raises:
        SetupError: `folder` holds something else.
    """
    from helios_core.commands.tiny import write_tiny
    from helios_core.errors import HeliosError  # installed by setup

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_tiny(folder, variant=variant)
    except (HeliosError, OSError) as error:
        raise SetupError(str(error)) from error


class ProgressBar:
    """One line that shows the running node, its progress and the time spent."""

    def __init__(self, graph: dict) -> None:
        self._names = {node_id: node["class_type"] for node_id, node in graph.items()}
        self._began = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._last = ""

    def show(self, event: Event) -> None:
        if event.type != "progress_state":
            return
        running = [node for node in event.data["nodes"].values() if node["state"] == "running"]
        if not running:
            return
        node = running[-1]
        name = self._names.get(str(node.get("display_node_id")), "?")
        part = min(1.0, node["value"] / (node["max"] or 1))
        if self._terminal:
            filled = "#" * round(part * BAR_WIDTH)
            elapsed = time.monotonic() - self._began
            print(f"\r[{filled:<{BAR_WIDTH}}] {name} {part:4.0%} {elapsed:5.0f} s ", end="\x1b[K", flush=True)
        elif (line := f"  {name} {int(part * 10) * 10}%") != self._last:
            # A log file gets a line for every tenth, not for every step.
            say(line)
            self._last = line

    def close(self) -> None:
        if self._terminal:
            print()


def report(entry: dict) -> int:
    """Print path, frames, rate and length of every video a history entry names."""
    import av  # installed by setup

    videos = [file for file in output_files(entry, OUTPUT) if file.suffix in VIDEO_SUFFIXES]
    if not videos:
        raise SetupError("The workflow ended without a video file: it needs a SaveVideo node.")
    for file in videos:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            frames = stream.frames or sum(1 for _ in container.decode(stream))
            size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        say(f"{file}: {frames} frames, {size}, {rate:g} fps, {frames / rate if rate else 0:.3f} seconds")
    return 0
