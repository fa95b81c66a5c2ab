"""The picture of the README: films that helios-small makes of four prompts, as one animated WebP.

python tools/small_films.py [--model models/helios-small/mid] [--seed 1]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from helios_core.commands.embedded import SMALL_FOLDER, SMALL_SIZE
from helios_core.pipeline import HeliosPipeline
from helios_core.variants import CHUNK_FRAMES, FPS

TARGET = Path(__file__).resolve().parent.parent / "models" / "helios-small" / "films.webp"
PROMPTS = (
    "A red ball moves left in the snow.",
    "An orange triangle moves up and down in a grey hall.",
    "A blue ring moves in a circle in the desert.",
    "A green square bounces off the edges at night.",
)
CHUNKS, SCALE, EVERY, COLUMNS = 3, 3, 2, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SMALL_FOLDER / "mid")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    width, height = SMALL_SIZE
    made = HeliosPipeline.from_pretrained(options.model)(
        list(PROMPTS),
        width=width,
        height=height,
        num_frames=CHUNKS * CHUNK_FRAMES,
        generator=torch.Generator().manual_seed(options.seed),
        output_type="uint8",
    )
    rows = made.frames[:, ::EVERY].unflatten(0, (-1, COLUMNS))  # [rows,columns,F,H,W,3]
    sheets = rows.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    size = (sheets.shape[2] * SCALE, sheets.shape[1] * SCALE)
    pictures = [Image.fromarray(sheet.numpy()).resize(size) for sheet in sheets]
    pictures[0].save(TARGET, save_all=True, append_images=pictures[1:], duration=round(1000 * EVERY / FPS), loop=0,
                     quality=80)  # fmt: skip
    print(f"{TARGET.name}: {len(pictures)} pictures, {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
