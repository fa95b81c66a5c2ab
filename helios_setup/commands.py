"""The command line of `run.py`."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helios_core.variants import DEFAULT, VARIANTS
from helios_setup.demo import demo, output_folder, released_folder, serve, write_tiny_folder
from helios_setup.environment import install_system_tools, setup
from helios_setup.errors import SetupError
from helios_setup.paths import API_WORKFLOWS, ROOT, inside_venv, venv_program
from helios_setup.server import stop_on_terminate
from helios_setup.workflow import chunks_for, load_workflow

DEFAULT_WORKFLOW = "helios_distilled_t2v"
INTERRUPTED = 130
MOST_TEST_PROCESSES = 4  # each may start a ComfyUI of its own
MOST_ORDERS = 1_000_000


class ExactParser(argparse.ArgumentParser):
    """No abbreviated options: pytest's `--co` would be taken for `--comfyui`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Helios for ComfyUI: everything is set up on first use, in this folder."
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=ExactParser)
    comfyui = ExactParser(add_help=False)
    comfyui.add_argument(
        "--comfyui",
        metavar="PATH",
        help="use this ComfyUI folder (default: $COMFYUI_PATH, else .comfyui here); packages go to .venv",
    )
    model = ExactParser(add_help=False)
    model.add_argument("--model", metavar="PATH", help="a released Helios folder (default: a small one of the pack)")

    commands.add_parser("setup", parents=[comfyui], help="make .venv, fetch ComfyUI, link the pack into it")
    shown = commands.add_parser("demo", parents=[comfyui, model], help="render a video in ComfyUI")
    shown.add_argument("--prompt", help="replaces the workflow's prompt")
    shown.add_argument("--seconds", type=float, help="length, rounded up to chunks of 33 frames at 24 fps")
    shown.add_argument("--workflow", default=DEFAULT_WORKFLOW, metavar="NAME", help="one of workflows/api")
    served = commands.add_parser("serve", parents=[comfyui, model], help="run ComfyUI in the foreground")
    served.add_argument("--port", type=int, default=8188)
    served.add_argument("--output", metavar="FOLDER", type=Path, help="where videos go (default: output here)")
    tested = commands.add_parser("test", parents=[comfyui], help="run pytest, which gets the other arguments")
    # Not the place of the arguments: parse() puts everything argparse does not know here.
    tested.set_defaults(pytest=[])
    tiny = commands.add_parser("tiny", parents=[comfyui], help="write a tiny random released folder")
    tiny.add_argument("--variant", choices=VARIANTS, default=DEFAULT.name)
    tiny.add_argument("--output", required=True, metavar="FOLDER", type=Path)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse, keeping what only pytest knows for `test` and refusing it elsewhere."""
    parser = build_parser()
    options, unknown = parser.parse_known_args(arguments)
    if options.command == "test":
        options.pytest = unknown
    elif unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    try:
        check_options(options)
        tree = setup(options.comfyui)
        if options.command == "setup":
            return 0
        if options.command == "test":
            return run_tests(tree, options.pytest)
        if not inside_venv():
            return run_again(arguments)
        return run_inside(options, tree)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED


def check_options(options: argparse.Namespace) -> None:
    """Refuse what can be known to fail before minutes of set-up."""
    if getattr(options, "model", None):
        released_folder(options.model)
    if options.command == "serve" and options.output is not None:
        output_folder(options.output)
    if options.command == "demo":
        load_workflow(API_WORKFLOWS, options.workflow)
        if options.seconds is not None:
            chunks_for(options.seconds)


def run_again(arguments: Sequence[str]) -> int:
    """The same command on the environment's Python."""
    command = [str(venv_program("python")), str(ROOT / "run.py"), *arguments]
    sys.stdout.flush()
    if os.name == "posix":
        # The same process id, so a signal to it reaches the code that stops the server.
        os.execv(command[0], command)
    return subprocess.run(command, check=False).returncode


def run_inside(options: argparse.Namespace, tree: Path) -> int:
    stop_on_terminate()
    if options.command == "demo":
        return demo(tree, options.model, options.prompt, options.seconds, options.workflow)
    if options.command == "serve":
        serve(tree, options.model, options.port, options.output)
    write_tiny_folder(options.output, options.variant)
    print(options.output)
    return 0


def run_tests(tree: Path, arguments: Sequence[str]) -> int:
    """Run pytest in the checkout with the tree named; its exit code."""
    install_system_tools()
    environment = {**os.environ, "COMFYUI_PATH": str(tree)}
    # The test files already run side by side.
    environment.setdefault("OMP_NUM_THREADS", "1")
    # The console program, not `python -m`: that would put the checkout, whose `nodes` package hides
    # ComfyUI's module of that name, on sys.path.
    order = _order(arguments)
    command = [str(venv_program("pytest")), *_parallel(arguments), *order, *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status and order:
        print(f"The tests run in a random order; for this one again: run.py test {' '.join(order)}")
    return status


def _order(arguments: Sequence[str]) -> list[str]:
    """The tests of each file in a random order, and the files where one process runs them all.

    Unless the caller decides about that. Over several processes pytest-xdist begins with the largest files.
    """
    if any("random" in argument and "order" in argument for argument in arguments):
        return []
    return [f"--random-order-seed={random.randrange(MOST_ORDERS)}"]


def _parallel(arguments: Sequence[str]) -> list[str]:
    """Test files spread over the processors, unless the caller decides about that, or wants a debugger."""
    decided = any(argument.startswith(("-n", "--numprocesses", "--dist", "--pdb")) for argument in arguments)
    processes = min(MOST_TEST_PROCESSES, os.cpu_count() or 1)
    return [] if decided or processes < 2 else ["-n", str(processes), "--dist", "loadfile"]
