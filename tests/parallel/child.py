"""One of several processes that make films together, and the films that one process makes for comparison."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from helios_core.commands import cli
from helios_core.errors import HeliosError
from helios_core.networks.parallel.team import Team
from helios_core.pipeline import HeliosPipeline

# Tokens that neither 2 nor 4 divides; history has 5 x 3 tokens a frame.
ODD = {"width": 80, "height": 48}
SQUARE, WIDE = {"width": 64, "height": 64}, {"width": 128, "height": 64}


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(11))


def _image(size: dict[str, int], batch: int = 1) -> torch.Tensor:
    return _random(batch, 3, size["height"], size["width"])


def _clip(size: dict[str, int]) -> torch.Tensor:
    return _random(33, 3, size["height"], size["width"])


FEW = {"pyramid_num_inference_steps_list": [1, 1, 1], "num_inference_steps": 2}
BLENDED = {"prompt_schedule": [(0, "a boat"), (1, "a storm")], "blend": 2, "num_frames": 66}
TWO = {"prompt": ["a boat", "a storm"]}
# Films by name: variant and the pipeline's keywords.
FILMS: dict[str, tuple[str, dict[str, Any]]] = {
    "distilled-t2v": ("distilled", {**SQUARE, **TWO, "num_frames": 66}),
    "distilled-i2v": ("distilled", {**WIDE, "prompt": "a boat", "image": _image(WIDE)}),
    "distilled-v2v": ("distilled", {**SQUARE, **BLENDED, "video": _clip(SQUARE)}),
    "mid-t2v": ("mid", {**SQUARE, **BLENDED, "negative_prompt": "blurry", "guidance_scale": 3.0}),
    "mid-i2v": ("mid", {**SQUARE, **TWO, "image": _image(SQUARE, 2)}),
    "mid-v2v": ("mid", {**SQUARE, "prompt": "a boat", "video": _clip(SQUARE), "solver": "euler"}),
    "base-t2v": ("base", {**ODD, **TWO, "num_frames": 66, "negative_prompt": "blurry"}),
    "base-i2v": ("base", {**ODD, "prompt": "a boat", "image": _image(ODD), "guidance_scale": 1.0}),
    "base-v2v": ("base", {**ODD, "prompt": "a boat", "video": _clip(ODD)}),
}
# Of a model that is deep enough for 8-bit products, which are another video.
DEEP = {"deep": ("deep", {**SQUARE, "prompt": "a boat"})}


def made(pipeline: HeliosPipeline, name: str) -> torch.Tensor:
    """A film's latents; empty in all processes but the first."""
    keywords = {"num_frames": 33, **FEW, **(FILMS | DEEP)[name][1]}
    generator = torch.Generator().manual_seed(5)
    return pipeline(**keywords, generator=generator, output_type="latent").latents


def films(folder: Path, target: Path, tasks: list[dict[str, Any]]) -> None:
    """Makes films with each of ``tasks``' options, keeping a pipeline per variant; process 0 writes ``target``."""
    latents: dict[str, torch.Tensor] = {}
    for task in tasks:
        pipelines: dict[str, HeliosPipeline] = {}
        for name in task["films"]:
            variant = (FILMS | DEEP)[name][0]
            if variant not in pipelines:
                with mock.patch.object(
                    torch.nn.Module, "compile", _eager(torch.nn.Module.compile)
                ):  # without a compiler
                    pipelines[variant] = HeliosPipeline.from_pretrained(folder / variant, **task["options"])
            latents[task["name"] + name] = made(pipelines[variant], name)
        for pipeline in pipelines.values():
            pipeline.close()
    if dist.get_rank() == 0:
        torch.save(latents, target)
    else:
        assert not any(x.numel() for x in latents.values())


def _eager(compiled: Callable) -> Callable:
    return lambda module, **options: compiled(module, backend="eager", **options)


def traffic(folder: Path, target: Path, context: int, cases: list[dict[str, int]]) -> None:
    """What every process sends in one forward, counted from its calls, as JSON."""
    sent = [0]
    exchange = dist.all_to_all_single

    def counted(received: Any, tensor: Any, incoming: Any, outgoing: list[int], group: Any = None) -> None:
        sent[0] += (sum(outgoing) - outgoing[dist.get_rank()]) * tensor.element_size()
        exchange(received, tensor, incoming, outgoing, group=group)

    pipeline, found = HeliosPipeline.from_pretrained(folder / "base", context_parallel=context), []
    dim = pipeline.transformer.config.text_dim
    for case in cases:
        batch, rows, columns = case["batch"], case["height"] // 8, case["width"] // 8
        sent[0] = 0
        arguments = (torch.zeros(batch, 16, 9, rows, columns), torch.zeros(batch), torch.zeros(batch, 512, dim))
        history = [torch.zeros(batch, 16, frames, rows, columns) for frames in (2, 2, 16)]
        assert pipeline.crew is not None and pipeline.crew.ulysses is not None
        with mock.patch("torch.distributed.all_to_all_single", counted), torch.no_grad():
            pipeline.transformer(*arguments, *history)
        found.append(sent[0])
    target.with_suffix(f".{dist.get_rank()}").write_text(json.dumps(found))


def refusals(folder: Path, target: Path) -> None:
    """Requests that cannot be met: the same sentence, and processes that can go on."""
    told = {}

    def attempt(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except HeliosError as error:
            told[name] = str(error)

    rank, size = dist.get_rank(), dist.get_world_size()
    attempt("heads", lambda: HeliosPipeline.from_pretrained(folder / "one-head", context_parallel=size))
    absent = folder / ("absent" if rank == 1 else "distilled")
    attempt("absent", lambda: HeliosPipeline.from_pretrained(absent, context_parallel=size))
    attempt("count", lambda: HeliosPipeline.from_pretrained(folder / "distilled", context_parallel=size + 1))
    distilled = HeliosPipeline.from_pretrained(folder / "distilled", context_parallel=size // 2, cfg_parallel=True)
    attempt("guidance", lambda: made(distilled, "distilled-t2v"))
    # Never begun, begun and dropped: the others wait for neither.
    together = HeliosPipeline.from_pretrained(folder / "distilled", context_parallel=size)
    keywords = {**FEW, **SQUARE, "prompt": "a boat", "num_frames": 66, "output_type": "latent"}
    together.stream(**keywords)
    for _ in together.stream(**keywords):
        break
    told["after"] = str(list(made(together, "distilled-t2v").shape))
    target.with_suffix(f".{rank}").write_text(json.dumps(told))


def lost(folder: Path, target: Path, which: int) -> None:
    """In the middle of a chunk the first process has no memory left, or another one is killed."""
    pipeline = HeliosPipeline.from_pretrained(folder / "distilled", context_parallel=dist.get_world_size())
    exchange, calls = dist.all_to_all_single, []

    def deadly(*arguments: Any, **keywords: Any) -> None:
        calls.append(None)
        if dist.get_rank() == which and len(calls) > 20:
            if which == 0:
                raise MemoryError
            os.kill(os.getpid(), signal.SIGKILL)
        exchange(*arguments, **keywords)

    told = "nothing"
    with mock.patch("torch.distributed.all_to_all_single", deadly):
        try:
            made(pipeline, "distilled-t2v")
        except (HeliosError, MemoryError) as error:
            told = str(error)
    target.with_suffix(f".{dist.get_rank()}").write_text(told)


def apart(folder: Path, target: Path) -> None:
    """Films whose frames the last process makes: one that it cannot decode, and one that it begins to decode late."""
    pipeline = HeliosPipeline.from_pretrained(folder / "distilled", context_parallel=2, decode_parallel=True)
    decodes, begun = dist.get_rank() == 2, target / "second chunk"
    keywords = {**FEW, **SQUARE, "prompt": "a boat", "num_frames": 99}
    told = ""
    with mock.patch.object(pipeline, "decode", side_effect=MemoryError("no memory is left")):
        try:
            list(pipeline.stream(**keywords))
        except HeliosError as error:
            told = str(error)
    decode = pipeline.decode

    def late(latents: torch.Tensor) -> torch.Tensor:
        while decodes and not begun.exists():
            time.sleep(0.01)
        return decode(latents)

    def on_step(chunk: int) -> Callable[..., None]:
        return lambda *_: begun.touch() if chunk == 1 else None

    with mock.patch.object(pipeline, "decode", late):
        chunks = list(pipeline.stream(**keywords, on_step=on_step))
    film = pipeline(**keywords, output_type="uint8")
    if dist.get_rank() == 0:
        frames = torch.cat([chunk.frames for chunk in chunks if chunk.frames is not None], 1)
        state = {"latents": torch.cat([chunk.latents for chunk in chunks], 2), "frames": frames, "whole": film.frames}
        torch.save(state | {"told": told, "order": [chunk.index for chunk in chunks]}, target / "film.pt")
    else:
        assert not chunks and all(tensor.is_meta for tensor in pipeline.transformer.parameters()) is decodes


def lost_decoder(folder: Path, target: Path) -> None:
    """The process that decodes is killed with the first chunk in its hands."""
    pipeline = HeliosPipeline.from_pretrained(folder / "distilled", decode_parallel=True)
    told = "nothing"
    with mock.patch.object(pipeline, "decode", lambda _: os.kill(os.getpid(), signal.SIGKILL)):
        try:
            list(pipeline.stream(**{**FEW, **SQUARE, "prompt": "a boat", "num_frames": 66}))
        except HeliosError as error:
            told = str(error)
    target.write_text(told)


def command(arguments: list[str]) -> None:
    """The command line, as torchrun starts it."""
    raise SystemExit(cli.main(arguments))


def main() -> None:
    for function, arguments in json.loads(sys.argv[1]):
        if function != "command":
            Team.from_environment()
        globals()[function](*(Path(argument) if isinstance(argument, str) else argument for argument in arguments))


if __name__ == "__main__":
    main()
