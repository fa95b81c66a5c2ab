"""What ``python -m training lora`` does: clips and a released model in, a LoRA file out."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helios_core.checkpoint import TransformerSource, load_transformer, open_folder, open_transformer
from helios_core.checkpoint.streaming import OFFLOADS, stream_transformer
from helios_core.errors import HeliosError
from helios_core.networks.parallel.team import Team
from helios_core.networks.transformer import HeliosTransformer
from helios_core.samplers import SchedulerConfig
from helios_core.take.fingerprint import fingerprint, folder_fingerprint
from helios_core.take.history import check_size
from helios_core.variants import PIXELS_PER_TOKEN, PYRAMID_MULTIPLE

from .footage import Cache, Encoder, find_footage
from .lora import DEFAULT_TARGETS, Adapters, LoraTask, write_lora
from .parallel import join, shard_blocks
from .streamed import StreamedForTraining
from .trainer import Run, Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FACTS = "lora.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; sizes, folder, minutes and threads are every command's."""
    parser.add_argument("clips", type=Path, help="clips with a text file each, or a CSV with columns file, caption")
    parser.add_argument("--model", type=Path, required=True, help="a released Base, Mid or Distilled folder")
    parser.add_argument("--output", type=Path, help="the LoRA file; by default lora.safetensors in the run's folder")
    parser.add_argument("--name", help="of the run's folder; by default lora- and the clips' name")
    parser.add_argument("--alpha", type=float, help="the LoRA acts by alpha / rank; by default the rank")
    parser.add_argument("--targets", nargs="+", default=DEFAULT_TARGETS, help="layers, such as self_attn or ffn.0")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="by default bfloat16 on CUDA, float32 on the CPU")
    parser.add_argument("--shard", action="store_true", help="divide the model among the processes (FSDP2)")
    parser.add_argument(
        "--offload", choices=OFFLOADS, help="keep the blocks in host memory (cpu) or in the file (disk)"
    )
    parser.set_defaults(width=640, height=384, threads=os.cpu_count() or 1)


def train_lora(options: argparse.Namespace, train: Callable[[Run], None]) -> Path:
    """Prepares the clips, trains with ``train``, and writes the file also where training was stopped early.

    Raises:
        HeliosError: no clip with a caption or none that can be used, a wrong size or option, no released folder, or a
            run folder that was begun with other settings.
    """
    team = join()
    if options.shard and team.size == 1:
        raise HeliosError("--shard divides the model among several processes and there is one; start it with torchrun.")
    if options.shard and options.offload:
        raise HeliosError("--shard and --offload both keep blocks elsewhere than on the device; drop one.")
    release, source = open_folder(options.model).path, open_transformer(options.model)
    check_size(options.width, options.height, PIXELS_PER_TOKEN if source.variant == "base" else PYRAMID_MULTIPLE)
    device = team.device(options.device)
    dtype = DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    footage = find_footage(options.clips)
    encoder = Encoder(release, options.width, options.height, device, dtype, options.offload is not None)
    clips = Cache(options.folder / "cache", encoder).clips(footage, team)
    model = _transformer(source, dtype, device, options.shard, options.offload)
    adapters = Adapters(model, options.rank, options.rank if options.alpha is None else options.alpha, options.targets)
    adapters.attach(model)
    scheduler = SchedulerConfig.from_dict(source.scheduler)
    task = LoraTask(model, adapters, clips, options.batch, source.variant, scheduler)
    folder = options.folder / (options.name or f"lora-{options.clips.stem}")
    facts = {"rank": adapters.rank, "alpha": adapters.alpha, "layers": adapters.layers,
             "size": [options.width, options.height], "batch": options.batch * team.size, "rate": options.rate,
             "model": folder_fingerprint(release / "transformer"),
             "clips": fingerprint(clips.latents, clips.captions, clips.embeddings)}  # fmt: skip
    _same_run(folder, facts, team)
    settings = Settings(options.steps, options.rate, warmup=20)
    run = Run(task, folder, settings, team)
    train(run)
    path = options.output or folder / "lora.safetensors"
    if team.leads:
        write_lora(adapters, path, dtype, source.variant)
        print(f"{path}: {len(clips)} clips, {run.step} of {settings.steps} steps")
    return path


def _transformer(
    source: TransformerSource, dtype: torch.dtype, device: torch.device, shard: bool, offload: str | None
) -> HeliosTransformer:
    if offload is not None:
        return stream_transformer(source, dtype, device, offload, StreamedForTraining)
    if not shard:
        return load_transformer(source, dtype, device)
    model = load_transformer(source, dtype, "cpu")
    shard_blocks(model, device)
    return model


def _same_run(folder: Path, facts: dict[str, Any], team: Team) -> None:
    """Notes what a run is made from, and refuses to go on with one that was begun from something else."""
    path = folder / FACTS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else facts
    changed = [name for name, value in facts.items() if known.get(name) != value]
    if changed:
        raise HeliosError(f"the run in {folder} was begun with other {', '.join(changed)}; give another --name.")
    team.wait()
    if team.leads:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
