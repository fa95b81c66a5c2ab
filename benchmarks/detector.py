"""What is in a film of the small world, read from its pixels: it knows colours, positions and shapes, no captions.

Frames are [F,3,H,W] in 0..1. An object is what is more saturated than any scenery.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

COLOURS = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.05),
    "yellow": (0.95, 0.88, 0.10),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.10, 0.25, 0.90),
    "purple": (0.60, 0.15, 0.75),
}
BACKGROUNDS = {
    "night": ((0.05, 0.06, 0.12), (0.14, 0.15, 0.20)),
    "snow": ((0.72, 0.77, 0.83), (0.95, 0.96, 0.98)),
    "desert": ((0.90, 0.86, 0.78), (0.74, 0.64, 0.50)),
    "hall": ((0.52, 0.52, 0.54), (0.36, 0.36, 0.38)),
}
SATURATED = 0.38
SMALLEST = 0.01  # of the picture


@dataclass(frozen=True)
class Seen:
    """The largest object of a film. ``track`` [F,2] holds centres in heights, NaN where it is not wholly in sight."""

    colour: str | None
    kind: str | None
    motion: str | None
    background: str
    track: Array


def detect(frames: Array) -> Seen:
    """What a film shows. None where there is no object."""
    mask = saturated(frames)
    background = _background(frames, mask)
    track = np.full((len(frames), 2), np.nan, np.float32)
    colours: list[str] = []
    kinds: list[str] = []
    height = frames.shape[2]
    for index, (frame, area) in enumerate(zip(frames, mask, strict=True)):
        colour = _colour(frame, area)
        if colour is None:
            continue
        colours.append(colour)
        part = area & (_nearest(frame) == list(COLOURS).index(colour))
        part = _largest_window(part)
        ys, xs = np.nonzero(part)
        if len(ys) < SMALLEST * part.size or _touches_edge(part):
            continue
        track[index] = ((xs.min() + xs.max() + 1) / 2 / height, (ys.min() + ys.max() + 1) / 2 / height)
        kinds.append(_kind(part))
    return Seen(_most(colours), _most(kinds), _motion(track), background, track)


def saturated(frames: Array) -> NDArray[np.bool_]:
    """[F,H,W]: the pixels of objects."""
    return (frames.max(1) - frames.min(1)) > SATURATED


def object_colour(frames: Array) -> str | None:
    """The colour that most frames' largest object has."""
    found = [_colour(frame, area) for frame, area in zip(frames, saturated(frames), strict=True)]
    return _most([colour for colour in found if colour is not None])


def _nearest(frame: Array) -> NDArray[np.int64]:
    """Index of the nearest colour for every pixel of [3,H,W], brightness left out."""
    table = _chroma(np.array(list(COLOURS.values()), np.float32).T[:, :, None])  # [3,6,1]
    pixels = _chroma(frame)
    return ((pixels[:, None] - table[..., None]) ** 2).sum(0).argmin(0)


def _chroma(rgb: Array) -> Array:
    return rgb / np.maximum(rgb.max(0, keepdims=True), 1e-3)


def _colour(frame: Array, area: NDArray[np.bool_]) -> str | None:
    if area.mean() < SMALLEST:
        return None
    votes = np.bincount(_nearest(frame)[area], minlength=len(COLOURS))
    return list(COLOURS)[int(votes.argmax())]


def _largest_window(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drops stray pixels far from the bulk: rows and columns that hold nearly nothing."""
    kept = part.copy()
    kept[part.sum(1) < 2] = False
    kept[:, part.sum(0) < 2] = False
    return kept


def _touches_edge(part: NDArray[np.bool_]) -> bool:
    return bool(part[:, 0].any() or part[:, -1].any())


def _kind(part: NDArray[np.bool_]) -> str:
    ys, xs = np.nonzero(part)
    box = part[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    h, w = box.shape
    middle = box[int(0.42 * h) : max(int(0.58 * h), int(0.42 * h) + 1), int(0.42 * w) : max(int(0.58 * w), 1)]
    if middle.size and middle.mean() < 0.5:
        return "ring"
    corners = [box[: h // 5 + 1, : w // 5 + 1], box[: h // 5 + 1, -(w // 5 + 1) :]]
    upper = float(np.mean([corner.mean() for corner in corners]))
    lower = float(np.mean([box[-(h // 5 + 1) :, : w // 5 + 1].mean(), box[-(h // 5 + 1) :, -(w // 5 + 1) :].mean()]))
    if upper < 0.2 and lower - upper > 0.25:
        return "triangle"
    return "square" if min(upper, lower) > 0.65 else "ball"


def _background(frames: Array, mask: NDArray[np.bool_]) -> str:
    costs = {}
    outside = ~mask
    for name, pair in BACKGROUNDS.items():
        far = [((frames - np.array(c, np.float32)[None, :, None, None]) ** 2).sum(1) for c in pair]
        costs[name] = float(np.minimum(*far)[outside].mean()) if outside.any() else 0.0
    return min(costs, key=lambda name: costs[name])


def _motion(track: Array) -> str | None:
    """The motion that a track of centres shows; a jump is an object that left and came back."""
    seen = np.isfinite(track[:, 0])
    if seen.sum() < 12:
        return None
    both = seen[1:] & seen[:-1]
    steps = np.diff(track, axis=0)[both]
    steps = steps[np.abs(steps).max(1) < 0.25]
    if len(steps) < 8:
        return None
    points = track[seen]
    spread = np.percentile(points, 95, axis=0) - np.percentile(points, 5, axis=0)
    travel = np.abs(steps).mean(0)
    if travel.max() < 0.004:
        return "still"
    if spread[1] < 0.12:
        forward = (steps[:, 0] > 0).mean()
        return "right" if forward > 0.75 else "left" if forward < 0.25 else None
    if spread[0] < 0.12:
        return "up and down"
    round_enough = spread.max() < 1.6 * spread.min() and _circularity(points) < 0.2
    return "circle" if round_enough else "bounce"


def _circularity(points: Array) -> float:
    """Root mean square distance from the best circle, in radii."""
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    system = np.stack([2 * x, 2 * y, np.ones_like(x)], 1)
    a, b, c = np.linalg.lstsq(system, x**2 + y**2, rcond=None)[0]
    radius = np.sqrt(max(c + a * a + b * b, 1e-9))
    if radius > 1:
        return 1.0
    return float(np.sqrt(np.mean((np.hypot(x - a, y - b) - radius) ** 2)) / radius)


def _most(values: list[str]) -> str | None:
    return max(set(values), key=values.count) if values else None
