"""Command line: ``python -m helios_core generate`` and ``python -m helios_core tiny``."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .errors import HeliosError
from .history import CHUNK_FRAMES
from .pipeline import HeliosPipeline
from .progress import TerminalBar
from .tiny import VARIANTS, write_tiny
from .video import VideoWriter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a HeliosError becomes one line on standard error and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except HeliosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def generate(options: argparse.Namespace) -> None:
    """Writes a clip chunk by chunk."""
    if options.model is None:
        with tempfile.TemporaryDirectory() as folder:
            print("No --model given: using helios-tiny, random weights that make abstract noise, not video.")
            _generate(options, write_tiny(Path(folder) / "helios-tiny", "distilled"))
    else:
        _generate(options, options.model)


def _generate(options: argparse.Namespace, model: Path) -> None:
    if not options.seconds > 0:
        raise HeliosError(f"--seconds {options.seconds} must be above 0.")
    # Opened first: a path that cannot be written must fail before anything is computed.
    with VideoWriter(options.output, options.width, options.height, fps=options.fps, crf=options.crf) as writer:
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipeline = HeliosPipeline.from_pretrained(model, DTYPES[options.dtype or _default_dtype(device)], device)
        frames = math.ceil(options.seconds * options.fps)
        sampler_steps = pipeline.steps_per_chunk(frames, options.steps)
        with TerminalBar(sampler_steps) as bar:
            for chunk in pipeline.stream(
                options.prompt,
                negative_prompt=options.negative_prompt,
                width=options.width,
                height=options.height,
                num_frames=frames,
                pyramid_num_inference_steps_list=options.steps,
                guidance_scale=options.guidance,
                generator=torch.Generator("cpu").manual_seed(options.seed),
                on_step=bar.on_step,
            ):
                writer.write(chunk.frames[0])
                bar.chunk_finished()
    count = len(sampler_steps) * CHUNK_FRAMES
    print(f"{options.output}: {count} frames, {options.fps} fps, {count / options.fps:.2f} s")


def _default_dtype(device: str) -> str:
    return "float32" if device == "cpu" else "bfloat16"


def _tiny(options: argparse.Namespace) -> None:
    print(write_tiny(options.output, options.variant))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helios_core", description="Helios video generation")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("generate", help="make a video from a prompt")
    command.add_argument("--model", type=Path, help="released Helios folder (default: helios-tiny, random weights)")
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt")
    command.add_argument("--seconds", type=float, default=5.0, help="length, rounded up to whole chunks of 33 frames")
    command.add_argument("--output", type=Path, default=Path("helios.mp4"))
    command.add_argument("--width", type=int, default=640, help="pixels, divisible by 64")
    command.add_argument("--height", type=int, default=384, help="pixels, divisible by 64")
    command.add_argument("--fps", type=int, default=24)
    command.add_argument("--crf", type=int, default=18, help="h264 quality, lower is better")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, nargs="+", help="steps per stage (default: the variant's)")
    command.add_argument("--guidance", type=float, help="guidance scale (default: the variant's)")
    command.add_argument("--device", help="cuda, cpu, mps (default: cuda where there is one)")
    command.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, float32 on cpu")
    command.set_defaults(run=generate)

    command = commands.add_parser("tiny", help="write helios-tiny, random weights in the released layout")
    command.add_argument("--variant", choices=VARIANTS, default="distilled")
    command.add_argument("--output", type=Path, required=True)
    command.set_defaults(run=_tiny)
    return parser
