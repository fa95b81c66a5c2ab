"""How near a film ends to its end frame, with and without Helios End Frame, on helios-small.

    python -m benchmarks.end_frame models/helios-small/mid [--films 4] [--steps 8 6 4]

Films of two chunks. The image of even ones is the last frame of the prompt's own scene, of odd ones that of another.
Distances are in dB of PSNR over the pixels, more is nearer; ``vae`` is that of the image once encoded and decoded, and
``step`` the largest mean change from frame to frame in the last chunk, in grey levels. Writes
benchmarks/results/end-frame-<folder's name>.json.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_core.pipeline import HeliosPipeline
from helios_core.take.reference import still_clip
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take
from helios_core.variants import CHUNK_FRAMES
from helios_core.video.frames import as_output
from training.world import caption, draw_scene, render

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT, CHUNKS = 128, 64, 2
FIRST_SEED = 900_000  # far from training's
WAYS: dict[str, dict[str, Any]] = {
    "without": {},
    "strength 1": {"end_strength": 1.0},
    "strength 0.5": {"end_strength": 0.5},
    "2 chunks": {"end_chunks": 2},
}


def psnr(a: Tensor, b: Tensor) -> float:
    return round(-10 * math.log10((a - b).square().mean().item()), 2)


@torch.no_grad()
def row(pipe: HeliosPipeline, index: int, sampling: dict[str, Any], store: ChunkStore) -> dict[str, Any]:
    scene = draw_scene(FIRST_SEED + index, WIDTH / HEIGHT, held_out=True)
    shown = scene if index % 2 == 0 else draw_scene(2 * FIRST_SEED + index, WIDTH / HEIGHT, held_out=True)
    image = torch.from_numpy(render(shown, WIDTH, HEIGHT, 0, CHUNKS * CHUNK_FRAMES))[-1:]
    still = still_clip(2 * image - 1, pipe.vae.encode, pipe.vae.normalise)
    found = {"prompt": caption(scene, 0), "image": caption(shown, 0), "same scene": index % 2 == 0}
    found["vae"] = psnr(as_output(pipe.decode(still), "pt")[0, -1], image[0])
    for name, options in WAYS.items():
        given = {"end_image": image, **options} if options else {}
        chunks = pipe.stream(
            found["prompt"], width=WIDTH, height=HEIGHT, num_frames=CHUNKS * CHUNK_FRAMES, **sampling, **given,
            generator=torch.Generator().manual_seed(index), take=Take(store, f"film {index}", {}),
        )  # fmt: skip
        frames = [chunk.frames[0].permute(0, 3, 1, 2).float() / 255 for chunk in chunks][-1]
        step = (255 * (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))).max().item()
        found[name] = {"end": psnr(frames[-1], image[0]), "step": round(step, 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", help="per stage; default: the variant's")
    options = parser.parse_args()
    pipe = HeliosPipeline.from_pretrained(options.model)
    sampling = {"pyramid_num_inference_steps_list": options.steps} if options.steps else {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(options.films):
            rows.append(row(pipe, index, sampling, ChunkStore(scratch)))
            print(json.dumps(rows[-1]), flush=True)
            shown = {"model": str(options.model), "steps": options.steps, "rows": rows}
            file = RESULTS / f"end-frame-{options.model.resolve().name}.json"
            file.write_text(json.dumps(shown, indent=1) + "\n")


if __name__ == "__main__":
    main()
