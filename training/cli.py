"""Command line: ``python -m training`` vae, parts, data, stage1 to stage3, export, lora, status."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from helios_core.checkpoint import open_transformer
from helios_core.commands.cli import run_command
from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer

from .data import Drops, WorldClips, write_shards
from .export import PARTS, write_release
from .lora_run import add_arguments, train_lora
from .model import new_transformer
from .parallel import join
from .parts import write_parts
from .stage1 import Stage1
from .stage2 import STAGE_SHARES, Stage2
from .stage3 import DistillTask, OdeTask
from .trainer import STATE, Run, Settings, Task, averaged_weights, run_facts
from .vae import VAETask
from .world import PROMPTS, caption, draw_scene, render

RUNS = Path("training-runs")
SOURCES = {"base": "stage1", "mid": "stage2", "distilled": "stage3"}
# What drift the paper's two means against it prevent: Mid goes on without one.
ABLATIONS = {"anti-drifting": Drops(exact=1.0), "anchor": Drops(anchor=False)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; see :func:`run_command`."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    return run_command(options)


def world(options: argparse.Namespace) -> None:
    """Writes a picture of clips of the world and prints their captions."""
    from PIL import Image

    rows = []
    for seed in range(options.seed, options.seed + options.clips):
        scene = draw_scene(seed, options.width / options.height)
        print(f"{seed}: {caption(scene, 0)}")
        frames = torch.from_numpy(render(scene, options.width, options.height, 0, 99)[::14])
        rows.append(frames.permute(2, 0, 3, 1).flatten(1, 2))
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "world.png"
    Image.fromarray((torch.cat(rows) * 255).round().byte().numpy()).save(path)
    print(path)


def vae(options: argparse.Namespace) -> None:
    """Trains the VAE."""
    task = VAETask(batch=options.batch, pictures=options.pictures)
    _train(options, task, "vae", Settings(options.steps, options.rate, decay=0.3))


def parts(options: argparse.Namespace) -> None:
    """Freezes the VAE and writes the text side; with --release, takes both from a released folder."""
    if options.release is not None:
        for part in PARTS:
            shutil.copytree(options.release / part, options.folder / "parts" / part, dirs_exist_ok=True)
        return
    _needs(options.folder / "vae" / STATE, "vae")
    print(write_parts(options.folder))


def data(options: argparse.Namespace) -> None:
    """Encodes clips of the world into shards."""
    _needs(options.folder / "parts" / "vae", "parts")
    shards = range(options.first, options.first + options.shards)
    write_shards(options.folder / "parts", options.folder / "clips", shards, options.width, options.height)


def stage1(options: argparse.Namespace) -> None:
    """Trains Base; from Mid's weights where there are any and --fresh is not given."""
    model = new_transformer() if options.fresh else _trained(options.folder, "stage2", new_transformer())
    task = Stage1(model, _clips(options), options.batch)
    _train(options, task, "stage1", Settings(options.steps, options.rate, warmup=100))


def stage2(options: argparse.Namespace) -> None:
    """Trains Mid; with --start, from a released folder's weights."""
    model, name = new_transformer(), f"stage2-without-{options.without}" if options.without else "stage2"
    if options.start is not None:
        model.load_state_dict(open_transformer(options.start).state_dict())
    task = Stage2(model, _clips(options), options.batch, ABLATIONS.get(options.without), shares=options.shares)
    _train(options, task, name, Settings(options.steps, options.rate, warmup=100, average=0.995, sample_seconds=900))


def stage3(options: argparse.Namespace) -> None:
    """Trains Distilled: ODE initialisation from Mid, then distribution matching with Base."""

    def trained(name: str, command: str) -> HeliosTransformer:
        _needs(options.folder / name / STATE, command)
        return _trained(options.folder, name, new_transformer())

    task: Task
    if options.part == "ode":
        student, teacher = (trained("stage2", "stage2") for _ in range(2))
        task = OdeTask(student, teacher, _clips(options), options.batch)
    else:
        student, real = trained("stage3-ode", "stage3 --part ode"), trained("stage1", "stage1")
        task = DistillTask(student, real, _clips(options), options.batch)
    settings = Settings(options.steps, options.rate, warmup=50, average=0.995, sample_seconds=900)
    _train(options, task, f"stage3-{options.part}", settings)


def export(options: argparse.Namespace) -> None:
    """Writes released folders of what has been trained."""
    for variant in options.variants:
        model, found = new_transformer(), None
        own = ("stage3-dmd", "stage3-ode") if variant == "distilled" else (SOURCES[variant],)
        for name in (options.run_name,) if options.run_name else own:
            if found is None and (options.folder / name / STATE).is_file():
                model, found = _trained(options.folder, name, model), name
        if found is None:
            wanted = options.run_name or SOURCES[variant]
            raise HeliosError(f"variant {variant} has not been trained in {options.folder}; train {wanted}.")
        folder = write_release(options.output / variant, options.folder / "parts", variant, model)
        print(f"{folder}: {found} after {run_facts(options.folder / found)['step']} steps")


def lora(options: argparse.Namespace) -> None:
    """Trains a LoRA of a released model on a folder of captioned clips."""
    train_lora(options, lambda run: _go(options, run))


def status(options: argparse.Namespace) -> None:
    """Says how far every run is."""
    for state in sorted(options.folder.glob(f"*/{STATE}")):
        facts = run_facts(state.parent)
        lines = (state.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()[-50:]
        losses = [json.loads(line)["loss"] for line in lines]
        mean = sum(losses) / max(1, len(losses))
        hours = facts["seconds"] / 3600
        print(f"{state.parent.name}: step {facts['step']}, {hours:.2f} h, loss {mean:.4f} (mean of {len(losses)})")


def _train(options: argparse.Namespace, task: Task, name: str, settings: Settings) -> None:
    _go(options, Run(task, options.folder / name, settings, join()))


def _go(options: argparse.Namespace, run: Run) -> None:
    """Trains until the last step, the time that was given, or a signal."""
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    before = {number: signal.signal(number, run.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run.train(until)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clips(options: argparse.Namespace) -> WorldClips:
    _needs(options.folder / "parts" / "vae", "parts")
    return WorldClips(options.folder / "parts", options.folder / "clips", options.width, options.height, list(PROMPTS))


def _trained(runs: Path, name: str, model: HeliosTransformer) -> HeliosTransformer:
    """``model`` with a run's averaged weights, where there is such a run."""
    if (runs / name / STATE).is_file():
        weights = averaged_weights(runs / name)
        mine = {key.removeprefix("student."): value for key, value in weights.items() if key.startswith("student.")}
        model.load_state_dict(mine or weights)
    return model


def _needs(path: Path, command: str) -> None:
    if not path.exists():
        raise HeliosError(f"{path} is missing; run python -m training {command} first.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None], **numbers: float) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=(run.__doc__ or "").splitlines()[0])
        added.set_defaults(run=run)
        for name, value in numbers.items():
            added.add_argument(f"--{name}", type=type(value), default=value)
        added.add_argument("--folder", type=Path, default=RUNS, help="where runs keep their states")
        added.add_argument("--minutes", type=float, help="stop after so long; the same command goes on later")
        added.add_argument("--threads", type=int, default=1)
        added.add_argument("--width", type=int, default=128)
        added.add_argument("--height", type=int, default=64)
        return added

    command(world, seed=0, clips=12)
    command(vae, steps=1400, batch=2, pictures=600, rate=1.5e-3)
    command(parts).add_argument("--release", type=Path, help="a released folder whose VAE and text side to train with")
    command(data, first=0, shards=20)
    command(stage1, steps=2000, batch=8, rate=5e-4).add_argument("--fresh", action="store_true")
    starting = command(stage2, steps=4000, batch=8, rate=1.5e-3)
    starting.add_argument("--start", type=Path, help="a released folder whose weights to start from")
    starting.add_argument("--without", choices=list(ABLATIONS), help="an ablation, in a run of its own")
    starting.add_argument(
        "--shares", type=float, nargs=len(STAGE_SHARES), default=STAGE_SHARES, help="how often each stage is drawn"
    )
    command(stage3, steps=1000, batch=6, rate=3e-4).add_argument("--part", choices=("ode", "dmd"), default="ode")
    exporting = command(export)
    exporting.add_argument("variants", nargs="+", choices=list(SOURCES))
    exporting.add_argument("--run-name", help="of which run; that of the variant where absent")
    exporting.add_argument("--output", type=Path, default=Path("models/helios-small"))
    add_arguments(command(lora, steps=1000, batch=1, rate=1e-4, rank=16))
    command(status)
    return parser
