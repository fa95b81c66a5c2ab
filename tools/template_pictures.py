"""The cards of the template browser: what helios-small makes of a template's idea, and in words what it is for.

    python -m tools.template_pictures [--only API ...] [--words]

The frontend shows a pack's template as a square picture and its file's name, without a description, so the words are
in the picture. Films are helios-small's, as they come: Distilled's made on the spot, and Mid's from the picture of
`small_films.py`, because they take ten times as long. Base's cards show these too; each says whose film it shows.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from helios_core.commands.embedded import SMALL_FOLDER, SMALL_SIZE
from helios_core.pipeline import HeliosPipeline
from helios_core.take.anti_drift import AntiDrift
from helios_core.variants import CHUNK_FRAMES
from helios_core.video.drift.plot import picture as drift_picture
from helios_core.video.drift.report import report_frames
from helios_setup.paths import ROOT

from .templates import TEMPLATES, Template, cost

WORKFLOWS, MID_PICTURE = ROOT / "workflows", SMALL_FOLDER / "films.webp"
SIDE, QUALITY = 640, 85
FRAMES_SHOWN, GAP = 5, 5
INK, QUIET, GROUND, ACCENT = "#f4f4f5", "#a1a1aa", "#18181b", "#5eead4"
RED_BALL = "A red ball moves left in the snow."
TRIANGLE = "An orange triangle moves up and down in a grey hall."
RING = "A blue ring moves in a circle in the desert."
SQUARE = "A green square bounces off the edges at night."
# Changes that helios-small has learned: not of the background.
BALLS = (RED_BALL, "A green ball moves right in the snow.")
SQUARES = (SQUARE, "A red square bounces off the edges at night.")
RINGS = (RING, "A red ring moves in a circle in the desert.", "A red ring moves up and down in the desert.")


@dataclass(frozen=True)
class Film:
    """What is filmed for a card: keywords of the pipeline's call, and whether it begins from a picture or a clip."""

    prompt: str = ""
    chunks: int = 2
    begins: str = ""
    options: dict[str, Any] = field(default_factory=dict)


FILMS = {
    "t2v": Film(RED_BALL),
    "i2v": Film(TRIANGLE, 1, "image"),
    "v2v": Film(RING, 1, "video"),
    "long_video": Film(SQUARE, 3),
    "anchored_minute": Film(TRIANGLE, 2, "image", {"anti_drift": AntiDrift()}),
    "interactive": Film(chunks=3, options={"prompt_schedule": list(enumerate(RINGS)), "blend": 1}),
    "hand_chained": Film(chunks=2, options={"prompt_schedule": list(enumerate(SQUARES)), "blend": 1}),
    "drift_report": Film(SQUARE, 3),
    "live": Film(chunks=2, options={"prompt_schedule": list(enumerate(BALLS)), "blend": 1}),
    "larger": Film(RING, 1),
}
# Where a film lies in the picture of Mid's: column and row.
MID_FILMS = {"helios_mid_t2v": (1, 0), "helios_base_t2v": (0, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="API", nargs="+", help="these of workflows/api instead of all")
    parser.add_argument("--words", action="store_true", help="write anew on the pictures that are there")
    options = parser.parse_args()
    for number, template in enumerate(TEMPLATES, start=1):
        if not options.only or template.api in options.only:
            file = WORKFLOWS / f"{template.title}.jpg"
            image = Image.open(file).copy() if options.words else pictures(template, frames_of(template))
            write_words(image, number, template)
            image.save(file, quality=QUALITY, optimize=True)
            print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB", flush=True)


def frames_of(template: Template) -> np.ndarray:
    """The film, uint8 [F,H,W,3], with what it begins from in front."""
    if template.api in MID_FILMS:
        return _cut(*MID_FILMS[template.api])
    return filmed(template.api.split("_", 2)[2])


def _cut(column: int, row: int) -> np.ndarray:
    """One of the films in the picture of Mid's."""
    width, height = SMALL_SIZE
    with Image.open(MID_PICTURE) as picture:
        size = (picture.width // 2, picture.height // 2)
        box = (column * size[0], row * size[1], (column + 1) * size[0], (row + 1) * size[1])
        frames = [frame.convert("RGB").crop(box).resize((width, height)) for frame in ImageSequence.Iterator(picture)]
    return np.stack([np.asarray(frame) for frame in frames])


@functools.cache
def filmed(task: str) -> np.ndarray:
    film = FILMS[task]
    begin = _made(1, film.prompt) if film.begins else np.empty((0, *SMALL_SIZE[::-1], 3), np.uint8)
    options = dict(film.options)
    if film.begins == "image":
        begin = begin[:1]
        options["image"] = Image.fromarray(begin[0])
    elif film.begins == "video":
        options["video"] = [Image.fromarray(frame) for frame in begin]
    return np.concatenate([begin, _made(film.chunks, film.prompt, **options)])


@torch.no_grad()
def _made(chunks: int, prompt: str, **options: Any) -> np.ndarray:
    pipe = HeliosPipeline.from_pretrained(SMALL_FOLDER / "distilled")
    width, height = SMALL_SIZE
    found = pipe(prompt or None, width=width, height=height, num_frames=chunks * CHUNK_FRAMES, output_type="uint8",
                 generator=torch.Generator().manual_seed(1), **options)  # fmt: skip
    return found.frames[0].numpy()


def pictures(template: Template, frames: np.ndarray) -> Image.Image:
    """A frame at full width, five more in a row, and room for the words."""
    image = Image.new("RGB", (SIDE, SIDE), GROUND)
    height, small = SIDE * SMALL_SIZE[1] // SMALL_SIZE[0], _small()
    image.paste(_large(template, frames).resize((SIDE, height), Image.Resampling.BICUBIC), (0, 0))
    for place, index in enumerate(np.linspace(0, len(frames) - 1, FRAMES_SHOWN).round().astype(int)):
        image.paste(Image.fromarray(frames[index]).resize(small), (place * (small[0] + GAP), height + GAP))
    return image


def _small() -> tuple[int, int]:
    width = (SIDE - GAP * (FRAMES_SHOWN - 1)) // FRAMES_SHOWN
    return width, width * SMALL_SIZE[1] // SMALL_SIZE[0]


def write_words(image: Image.Image, number: int, template: Template) -> None:
    """What the template is for, below the pictures."""
    draw, write = ImageDraw.Draw(image), _writer(image)
    top = SIDE * SMALL_SIZE[1] // SMALL_SIZE[0] + _small()[1] + 2 * GAP
    draw.rectangle((0, top, SIDE, SIDE), fill=GROUND)
    draw.rectangle((0, top, 8, SIDE), fill=ACCENT)
    top = write(f"{number} · {template.section}", 44, INK, top + 14)
    top = write(template.use, 28, INK, top + 6)
    write(cost(template), 21, QUIET, top + 8)
    shown = "Mid" if template.api in MID_FILMS else "Distilled"
    draw.text((28, SIDE - 24), f"Picture: helios-small {shown}", font=_font(15), fill=QUIET)


def _large(template: Template, frames: np.ndarray) -> Image.Image:
    if not template.api.endswith("drift_report"):
        return Image.fromarray(frames[len(frames) // 2])
    plot = Image.fromarray(drift_picture(report_frames(frames, chunk_frames=CHUNK_FRAMES)))
    return plot.convert("RGB").crop((0, 0, plot.width, plot.width // 2))


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _writer(image: Image.Image) -> Callable[[str, int, str, int], int]:
    """Writes words from a line on, broken to the width, and says where the next line begins."""
    draw = ImageDraw.Draw(image)

    def write(text: str, size: int, ink: str, top: int) -> int:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if draw.textlength(longer, font=_font(size)) > SIDE - 48:
                lines.append(word)
            else:
                lines[-1] = longer
        for line in lines:
            draw.text((28, top), line, font=_font(size), fill=ink)
            top += round(size * 1.2)
        return top

    return write


if __name__ == "__main__":
    main()
