"""What helios-small has learned, read from its pixels: asked beside reached.

    python -m benchmarks.learned models/helios-small [--films 20] [--rows text image ...] [--long 44]

Prompts are held-out combinations that training never saw, with fresh seeds. :mod:`benchmarks.detector` reads the
films; it knows colours, positions and shapes only. Writes benchmarks/results/learned-<date>-<variants>-<rows>.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helios_core.pipeline import HeliosPipeline
from training.world import CHUNK_FRAMES, COLOURS, MOTIONS, PHRASES, Scene, caption, draw_scene, render

from .detector import Seen, detect, object_colour

RESULTS = Path(__file__).parent / "results"
SIZE = {"width": 128, "height": 64}
FIRST_SEED = 900_000  # far from training's
AT_ONCE = 5
Array = NDArray[np.float32]


class Film:
    """Renders with one variant's released defaults, several films at a time."""

    def __init__(self, folder: Path, variant: str, steps: list[int] | None, anchor: bool = True):
        self.variant, self.pipe = variant, HeliosPipeline.from_pretrained(folder / variant)
        self.sampling: dict[str, Any] = {}
        if steps and variant != "base":
            self.sampling["pyramid_num_inference_steps_list"] = steps
        if not anchor:
            prepare = self.pipe.transformer.prepare_history

            def without_anchor(short: Tensor, mid: Tensor, long: Tensor) -> Any:
                return prepare(torch.cat([torch.zeros_like(short[:, :, :1]), short[:, :, 1:]], 2), mid, long)

            self.pipe.transformer.prepare_history = without_anchor

    def __call__(self, prompts: list[str] | None, chunks: int, seed: int, **inputs: Any) -> Array:
        """[B,F,3,H,W] in 0..1."""
        generator = torch.Generator().manual_seed(seed)
        made = self.pipe(
            prompts, num_frames=chunks * CHUNK_FRAMES, generator=generator, output_type="pt",
            **{**SIZE, **self.sampling, **inputs},
        )  # fmt: skip
        return made.frames.numpy()


def share(flags: list[bool]) -> float:
    return sum(flags) / max(1, len(flags))


def scenes(count: int) -> list[Scene]:
    """Held-out scenes with one object each."""
    return [draw_scene(FIRST_SEED + i, SIZE["width"] / SIZE["height"], held_out=True) for i in range(count)]


def in_batches(film: Film, chosen: list[Scene], chunks: int) -> Iterator[tuple[Scene, Seen]]:
    for first in range(0, len(chosen), AT_ONCE):
        part = chosen[first : first + AT_ONCE]
        frames = film([caption(scene, 0) for scene in part], chunks, FIRST_SEED + first)
        yield from ((scene, detect(one)) for scene, one in zip(part, frames, strict=True))


def text(film: Film, count: int) -> dict[str, tuple[str, float]]:
    """Text to video, three chunks."""
    found = list(in_batches(film, scenes(count), 3))
    asked = {"colour": "0.95", "motion": "0.90", "kind": "0.85", "background": "0.95"}
    shares = {
        name: (asked[name], share([_wanted(scene, name) == getattr(seen, name) for scene, seen in found]))
        for name in asked
    }
    jumps = [np.linalg.norm(np.diff(seen.track, axis=0), axis=1)[CHUNK_FRAMES - 1 :: CHUNK_FRAMES] for _, seen in found]
    return {**shares, "jump between chunks, heights, median": ("small", float(np.nanmedian(np.concatenate(jumps))))}


def _wanted(scene: Scene, name: str) -> str:
    return scene.background if name == "background" else getattr(scene.things[0], name)


def image(film: Film, count: int) -> dict[str, tuple[str, float]]:
    """Image to video, two chunks: the picture's object, the prompt's motion."""
    near, colour, motion = [], [], []
    for scene in scenes(count):
        first = torch.from_numpy(render(scene, SIZE["width"], SIZE["height"], 0, 1))
        frames = film([caption(scene, 0)], 2, scene.wording, image=first)[0]
        seen, real = detect(frames), detect(np.repeat(first.numpy(), 2, axis=0))
        distance = np.abs(seen.track[0] - real.track[0]).max() * SIZE["height"] / SIZE["width"]
        near.append(bool(distance < 0.1))
        colour.append(seen.colour == scene.things[0].colour)
        motion.append(seen.motion == scene.things[0].motion)
    return {"position": ("all within 10 %", share(near)), "colour": ("all", share(colour)),
            "motion": ("all", share(motion))}  # fmt: skip


def video(film: Film, count: int) -> dict[str, tuple[str, float]]:
    """Video to video: the object's step across the seam, in mean steps of the clip before."""
    steps = []
    for scene in scenes(count):
        clip = render(scene, SIZE["width"], SIZE["height"], 0, 2 * CHUNK_FRAMES)
        frames = film([caption(scene, 2)], 1, scene.wording, video=torch.from_numpy(clip))[0]
        track = detect(np.concatenate([clip, frames])).track
        moved = np.linalg.norm(np.diff(track, axis=0), axis=1)
        seam = 2 * CHUNK_FRAMES - 1
        mean = np.nanmean(moved[:seam][moved[:seam] < 0.25])
        steps.append(float(moved[seam] / mean) if np.isfinite(moved[seam]) else float("inf"))
    return {"step across the seam, median of means": ("<= 2", float(np.median(steps))),
            "films without a jump": ("all", share([step <= 2 for step in steps]))}  # fmt: skip


def prompt_change(film: Film, count: int) -> dict[str, tuple[str, float]]:
    """Another prompt from chunk 2 of 4 on, which asks for another colour or motion."""
    changed, equal = [], []
    for index, scene in enumerate(scenes(count)):
        thing, what = scene.things[0], ("colour", "motion")[index % 2]
        names = list(COLOURS if what == "colour" else MOTIONS)
        wanted = names[(names.index(getattr(thing, what)) + 1 + index % (len(names) - 1)) % len(names)]
        before = caption(scene, 0)
        after = before.replace(thing.colour, wanted) if what == "colour" else before.replace(
            PHRASES[thing.motion], PHRASES[wanted]
        )  # fmt: skip
        rows = [(0, before), (2, after)]
        frames = film(None, 4, scene.wording, prompt_schedule=rows, blend=1)[0]
        same = film([before], 2, scene.wording)[0]
        end = frames[3 * CHUNK_FRAMES :]
        seen = object_colour(end[-11:]) if what == "colour" else detect(end).motion
        changed.append(seen == wanted)
        equal.append(bool(np.array_equal(frames[: 2 * CHUNK_FRAMES], same)))
    return {"changed within two chunks": ("0.90", share(changed)), "chunks before are equal": ("1", share(equal))}


def drift(film: Film, chunks: int, films: int = 1) -> dict[str, tuple[str, float]]:
    """Long films: |first 15 % - last 15 %| of what a picture's numbers are, the mean of all."""
    found = [_drift(film([caption(scene, 0)], chunks, FIRST_SEED)[0]) for scene in scenes(films)]
    return {name: ("small", float(np.mean([one[name] for one in found]))) for name in found[0]}


def _drift(frames: Array) -> dict[str, float]:
    part = max(1, round(0.15 * len(frames)))
    values = {
        "brightness": frames.mean(axis=(1, 2, 3)),
        "saturation": (frames.max(1) - frames.min(1)).mean(axis=(1, 2)),
        "colour": frames.mean(axis=(2, 3)),
        "sharpness": np.abs(np.diff(frames, axis=3)).mean(axis=(1, 2, 3)),
    }
    return {name: float(np.abs(v[:part].mean(0) - v[-part:].mean(0)).max()) for name, v in values.items()}


def unknown_words(film: Film, count: int) -> dict[str, tuple[str, float]]:
    """Words that no caption has: a picture all the same, of finite numbers."""
    prompts = ["An iridescent zeppelin ponders 漢字 in the snow.", "", "a red ball 🎈 at night !!"][:count]
    frames = film(prompts, 1, FIRST_SEED)
    return {"finite films": ("all", share([bool(np.isfinite(one).all() and one.std() > 0.01) for one in frames]))}


ROWS: dict[str, Callable[[Film, int], dict[str, tuple[str, float]]]] = {
    "text": text, "image": image, "video": video, "prompt-change": prompt_change, "unknown-words": unknown_words,
    "drift": drift,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learned", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder that holds base/, mid/ or distilled/")
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=[name for name in ROWS if name != "drift"])
    parser.add_argument("--variants", nargs="+", default=["base", "mid", "distilled"])
    parser.add_argument("--steps", type=int, nargs=3, help="steps of every pyramid stage; released ones where absent")
    parser.add_argument("--long", type=int, default=44, help="chunks of the drift row")
    parser.add_argument("--long-films", type=int, default=1, help="films of the drift row")
    parser.add_argument("--no-anchor", action="store_true", help="for a model that was trained without one")
    options = parser.parse_args()
    results = []
    for variant in options.variants:
        if not (options.folder / variant / "model_index.json").is_file():
            print(f"{variant}: not trained")
            continue
        film = Film(options.folder, variant, options.steps, not options.no_anchor)
        for row in options.rows:
            started = time.monotonic()
            found = drift(film, options.long, options.long_films) if row == "drift" else ROWS[row](film, options.films)
            for name, (asked, reached) in found.items():
                print(f"{variant:<10} {row:<14} {name:<40} asked {asked:<16} reached {reached:.3g}", flush=True)
                results.append({"variant": variant, "row": row, "name": name, "asked": asked, "reached": reached})
            print(f"{variant:<10} {row:<14} {time.monotonic() - started:.0f} s")
    RESULTS.mkdir(exist_ok=True)
    # With what was asked for: two runs that end in the same second are two files.
    asked = "-".join([*options.variants, *options.rows])
    path = RESULTS / f"learned-{datetime.now():%Y%m%d-%H%M%S}-{asked}.json"
    names = ("films", "steps", "long", "long_films", "no_anchor")
    settings = {**{name: getattr(options, name) for name in names}, "rows": results}
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    print(path.name)


if __name__ == "__main__":
    main()
