"""A loss plot without a plotting library: a PNG of one curve, smoothed, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 640, 360, 48


def write_loss_plot(points: Sequence[tuple[int, float]], path: Path) -> None:
    """Draws (step, loss) pairs; with fewer than two there is nothing to draw."""
    from PIL import Image, ImageDraw

    bins = _binned([(step, loss) for step, loss in points if loss > 0 and math.isfinite(loss)])
    if len(bins) < 2:
        return
    low, high = math.log10(min(v for _, v in bins)), math.log10(max(v for _, v in bins))
    high = max(high, low + 0.05)
    first, last = bins[0][0], bins[-1][0]

    def at(step: float, value: float) -> tuple[float, float]:
        x = MARGIN + (step - first) / (last - first) * (WIDTH - MARGIN - 16)
        y = 16 + (high - math.log10(value)) / (high - low) * (HEIGHT - MARGIN - 16)
        return x, y

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for i in range(5):
        value = 10 ** (low + (high - low) * i / 4)
        y = at(first, value)[1]
        draw.line([(MARGIN, y), (WIDTH - 16, y)], fill="#dddddd")
        draw.text((4, y - 6), f"{value:.3g}", fill="black")
        step = first + (last - first) * i / 4
        draw.text((at(step, 10**low)[0] - 16, HEIGHT - 24), f"{step:.0f}", fill="black")
    draw.line([at(step, value) for step, value in bins], fill="#2050c0", width=2)
    image.save(path)


def _binned(points: Sequence[tuple[int, float]], count: int = 300) -> list[tuple[float, float]]:
    size = max(1, len(points) // count)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]
