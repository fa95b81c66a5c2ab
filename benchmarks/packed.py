"""How far narrow weights take one forward from bf16, and what they weigh.

    python -m benchmarks.packed [--width-too]

helios-small's Mid (trained, 6 blocks of width 160) through a whole forward; with ``--width-too`` one block of the
released width with random weights, which takes 8 GB of disk and some minutes. Computed in float32 from each file's
weights, so that only the weights differ. Sizes of the 14B transformer are computed from its shapes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from helios_core.checkpoint import load_transformer, open_transformer
from helios_core.checkpoint.load import keeps_float32
from helios_core.checkpoint.packed import FORMS
from helios_core.checkpoint.source import CONFIG_KEY, VARIANT_KEY
from helios_core.commands.convert import convert
from helios_core.commands.embedded import embedded
from helios_core.networks.transformer import HeliosTransformer, TransformerConfig

TYPES = ("fp8", *FORMS)
WEIGHT_STD = 0.02


def released_block(folder: Path) -> Path:
    """A file of one block of the released width: random weights, biases and tables."""
    from safetensors.torch import save_file

    config = TransformerConfig(num_layers=1)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in HeliosTransformer(**config.to_dict()).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {key: (WEIGHT_STD * torch.randn(shape, generator=generator)).bfloat16() for key, shape in shapes.items()}
    for key in state:
        if "norm" in key and key.endswith("weight"):
            state[key] += 1
    metadata = {VARIANT_KEY: "mid", CONFIG_KEY: json.dumps(config.to_dict())}
    save_file(state, folder / "block.safetensors", metadata)
    return folder / "block.safetensors"


@torch.no_grad()
def velocity(path: Path) -> Tensor:
    """One forward on fixed inputs, 9 latents of 8x8."""
    model = load_transformer(open_transformer(path))
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 16, 9, 8, 8), (1, 512, model.config.text_dim), *[(1, 16, n, 8, 8) for n in (2, 2, 16)]]
    latents, text, *history = [torch.randn(shape, generator=generator) for shape in shapes]
    return model(latents, torch.tensor([700.0]), text, *history)


def errors(source: Path) -> dict[str, float]:
    """Root mean square of the difference to bf16, of that of bf16's velocity itself."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        wanted = velocity(convert(source, Path(scratch) / "bf16.safetensors", show_progress=False))
        for name in TYPES:
            file = Path(scratch) / f"{name}{'.gguf' if name in FORMS else '.safetensors'}"
            found_velocity = velocity(convert(source, file, name, keep_blocks=0, show_progress=False))
            found[name] = float((found_velocity - wanted).norm() / wanted.norm())
            print(f"{source.name}: {name} {found[name]:.4f}", flush=True)
            file.unlink()
    return found


def gigabytes(name: str) -> float:
    """Of the released transformer."""
    with torch.device("meta"):
        state = HeliosTransformer().state_dict()
    total = 0.0
    for key, value in state.items():
        narrow = key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2
        if narrow and name == "fp8":
            narrow = 3 <= int(key.split(".")[1]) < 37
        width = 4 if keeps_float32(key) else 2
        if narrow:
            width = 1 if name == "fp8" else FORMS[name].nbytes / 32
        total += value.numel() * width
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width-too", action="store_true", help="one block of the released width as well")
    options = parser.parse_args()
    columns = {"helios-small": errors(embedded("mid").folder)}
    if options.width_too:
        with tempfile.TemporaryDirectory() as scratch:
            columns["one released block"] = errors(released_block(Path(scratch)))
    print(f"| weights | 14B transformer, computed | {' | '.join(columns)} |")
    for name in TYPES:
        print(
            f"| {name} | {gigabytes(name):.2f} GB | {' | '.join(f'{found[name]:.4f}' for found in columns.values())} |"
        )


if __name__ == "__main__":
    main()
