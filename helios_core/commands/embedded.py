"""Models that come with the pack: helios-small, which has learned a small world, and helios-tiny, random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..variants import VARIANTS

SMALL_PREFIX, TINY_PREFIX = "helios-small-", "helios-tiny-"
TINY_NAMES = tuple(TINY_PREFIX + variant for variant in VARIANTS)
# Beside helios_core in a checkout; absent where helios_core alone is installed.
SMALL_FOLDER = Path(__file__).resolve().parents[2] / "models" / "helios-small"
# The size that it was trained at, and a quarter of the released one, which a processor renders in a minute or two.
SMALL_SIZE, TINY_SIZE = (128, 64), (320, 192)
# In helios-small's words: objects, colours and motions on four backgrounds.
SMALL_PROMPT = "A red ball moves left in the snow."

SMALL_MAKES, TINY_MAKES = "which knows coloured shapes that move", "random weights that make abstract noise"


@dataclass(frozen=True)
class Embedded:
    """What is used where no model is given.

    Attributes:
        name: under which ComfyUI lists it.
        variant: base, mid or distilled.
        folder: None for helios-tiny, which is written where it is needed.
        size: width and height in pixels that it is made for.
        prompt: one that it follows; None for random weights.
        makes: what, in a few words.
    """

    name: str
    variant: str
    folder: Path | None
    size: tuple[int, int]
    prompt: str | None
    makes: str


def embedded(variant: str) -> Embedded:
    """helios-small where this variant of it has been trained and is there, else helios-tiny."""
    folder = SMALL_FOLDER / variant
    if (folder / "model_index.json").is_file():
        return Embedded(SMALL_PREFIX + variant, variant, folder, SMALL_SIZE, SMALL_PROMPT, SMALL_MAKES)
    return Embedded(TINY_PREFIX + variant, variant, None, TINY_SIZE, None, TINY_MAKES)
