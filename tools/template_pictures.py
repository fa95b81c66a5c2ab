"""The cards of the template browser: what helios-small makes of a template's idea, and in words what it is for.

    python -m tools.template_pictures [--only API]

The frontend shows a pack's template as a square picture and its file's name, without a description, so the words are
in the picture. Films are made on the spot, as they come. There is no small Base: its cards show Mid's.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from helios_core.commands.embedded import SMALL_FOLDER, SMALL_SIZE
from helios_core.pipeline import HeliosPipeline
from helios_core.take.anti_drift import AntiDrift
from helios_core.variants import CHUNK_FRAMES
from helios_core.video.drift.plot import picture as drift_picture
from helios_core.video.drift.report import report_frames
from helios_setup.paths import ROOT

from .templates import TEMPLATES, Template, cost

WORKFLOWS = ROOT / "workflows"
SIDE, QUALITY = 640, 85
FRAMES_SHOWN = 5
INK, QUIET, GROUND, ACCENT = "#f4f4f5", "#a1a1aa", "#18181b", "#5eead4"
RED_BALL = "A red ball moves left in the snow."
TRIANGLE = "An orange triangle moves up and down in a grey hall."
RING = "A blue ring moves in a circle in the desert."
SQUARE = "A green square bounces off the edges at night."


@dataclass(frozen=True)
class Film:
    """What is filmed for a card: keywords of the pipeline's call, and whether it begins from a picture or a clip."""

    prompt: str = ""
    chunks: int = 2
    begins: str = ""
    options: dict[str, Any] = field(default_factory=dict)


FILMS = {
    "helios_distilled_t2v": Film(RED_BALL),
    "helios_distilled_i2v": Film(TRIANGLE, begins="image"),
    "helios_distilled_v2v": Film(RING, begins="video"),
    "helios_distilled_long_video": Film(SQUARE, 6),
    "helios_distilled_anchored_minute": Film(RING, 6, "image", {"anti_drift": AntiDrift()}),
    "helios_distilled_interactive": Film(
        chunks=6, options={"prompt_schedule": [(0, RED_BALL), (2, TRIANGLE), (4, RING)], "blend": 2}
    ),
    "helios_distilled_hand_chained": Film(chunks=3, options={"prompt_schedule": [(0, SQUARE), (1, RING)], "blend": 1}),
    "helios_distilled_drift_report": Film(RED_BALL, 6),
    "helios_mid_t2v": Film(TRIANGLE),
    "helios_mid_i2v": Film(RED_BALL, begins="image"),
    "helios_mid_v2v": Film(SQUARE, begins="video"),
    "helios_base_t2v": Film(RING),
    "helios_base_i2v": Film(SQUARE, begins="image"),
    "helios_base_v2v": Film(TRIANGLE, begins="video"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="API", help="this one of workflows/api instead of all")
    options = parser.parse_args()
    for number, template in enumerate(TEMPLATES, start=1):
        if options.only in (None, template.api):
            file = WORKFLOWS / f"{template.title}.jpg"
            card(number, template, frames_of(template)).save(file, quality=QUALITY, optimize=True)
            print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB", flush=True)


@functools.cache
def pipeline(variant: str) -> HeliosPipeline:
    return HeliosPipeline.from_pretrained(SMALL_FOLDER / ("distilled" if variant == "distilled" else "mid"))


@torch.no_grad()
def frames_of(template: Template) -> np.ndarray:
    """The film, uint8 [F,H,W,3], with what it begins from in front."""
    film, pipe = FILMS[template.api], pipeline(template.variant)
    width, height = SMALL_SIZE

    def made(chunks: int, **options: Any) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        found = pipe(width=width, height=height, num_frames=chunks * CHUNK_FRAMES, generator=generator,
                     output_type="uint8", **options)  # fmt: skip
        return found.frames[0].numpy()

    begin = made(1, prompt=film.prompt) if film.begins else np.empty((0, height, width, 3), np.uint8)
    options = {**film.options, **({"prompt": film.prompt} if film.prompt else {})}
    if film.begins == "image":
        begin = begin[:1]
        options["image"] = Image.fromarray(begin[0])
    elif film.begins == "video":
        options["video"] = [Image.fromarray(frame) for frame in begin]
    return np.concatenate([begin, made(film.chunks, **options)])


def card(number: int, template: Template, frames: np.ndarray) -> Image.Image:
    """A frame at full width, five more in a row, and the words."""
    image = Image.new("RGB", (SIDE, SIDE), GROUND)
    height = SIDE * SMALL_SIZE[1] // SMALL_SIZE[0]
    image.paste(_large(template, frames).resize((SIDE, height), Image.Resampling.BICUBIC), (0, 0))
    small = (SIDE // FRAMES_SHOWN, SIDE // FRAMES_SHOWN * SMALL_SIZE[1] // SMALL_SIZE[0])
    for place, index in enumerate(np.linspace(0, len(frames) - 1, FRAMES_SHOWN).round().astype(int)):
        image.paste(Image.fromarray(frames[index]).resize(small), (place * small[0], height))
    draw, write = ImageDraw.Draw(image), _writer(image)
    top = height + small[1]
    draw.rectangle((0, top, 8, SIDE), fill=ACCENT)
    top = write(f"{number} · {template.section}", 44, INK, top + 14)
    top = write(template.use, 28, INK, top + 6)
    write(cost(template), 21, QUIET, top + 8)
    shown = "Mid, as there is no small Base" if template.variant == "base" else template.variant.capitalize()
    draw.text((28, SIDE - 24), f"Picture: helios-small {shown}", font=_font(15), fill=QUIET)
    return image


def _large(template: Template, frames: np.ndarray) -> Image.Image:
    if not template.api.endswith("drift_report"):
        return Image.fromarray(frames[-1])
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
