"""A small world to learn from: flat objects that move before a scenery, with captions that are true.

A :class:`Scene` is drawn from a seed and says everything about an endless clip; :func:`render` draws any frames of
it at any size. Lengths are in units of the picture's height, time in frames at 24 per second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FPS = 24
CHUNK_FRAMES = 33
HELD_OUT_OF = 8  # one in eight combinations is never trained on

COLOURS = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.05),
    "yellow": (0.95, 0.88, 0.10),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.10, 0.25, 0.90),
    "purple": (0.60, 0.15, 0.75),
}
KINDS = ("ball", "square", "triangle", "ring")
MOTIONS = {
    "left": "moves left",
    "right": "moves right",
    "up and down": "moves up and down",
    "circle": "moves in a circle",
    "bounce": "bounces off the edges",
}
STILL = "still"
PHRASES = {**MOTIONS, STILL: "stands still"}
# Phrase, colour above the horizon, colour of the hills: greys, so that the saturated pixels are the objects.
BACKGROUNDS = {
    "night": ("at night", (0.05, 0.06, 0.12), (0.14, 0.15, 0.20)),
    "snow": ("in the snow", (0.72, 0.77, 0.83), (0.95, 0.96, 0.98)),
    "desert": ("in the desert", (0.90, 0.86, 0.78), (0.74, 0.64, 0.50)),
    "hall": ("in a grey hall", (0.52, 0.52, 0.54), (0.36, 0.36, 0.38)),
}
CAMERAS = {"still": "The camera is still.", "pan": "The camera pans right."}
PAN_SPEED = 0.25 / FPS
EVENTS = ("colour", "motion")
# What a run's sample pictures show.
PROMPTS = (
    "A red ball moves left in the snow.",
    "A blue square moves up and down in the desert.",
    "A yellow triangle moves in a circle at night.",
    "A green ring bounces off the edges in a grey hall.",
    "A purple ball moves right at night.",
    "An orange triangle moves up and down in the snow.",
)


@dataclass(frozen=True)
class Thing:
    """One object: what it looks like, and how it moves from ``start`` (x, y) at frame ``since``.

    ``pace`` multiplies the motion's own speed; ``turn`` is its sense of rotation or direction, +1 or -1.
    """

    kind: str
    colour: str
    motion: str
    size: float
    start: tuple[float, float]
    pace: float
    turn: tuple[int, int]
    since: int = 0

    def positions(self, times: NDArray[np.int64], aspect: float) -> Array:
        """Centres [F,2] at ``times`` [F], in a picture ``aspect`` wide."""
        seconds = (times - self.since).astype(np.float64) / FPS * self.pace
        x, y = np.full_like(seconds, self.start[0]), np.full_like(seconds, self.start[1])
        half = self.size / 2
        if self.motion in ("left", "right"):
            sign = 1 if self.motion == "right" else -1
            # It leaves on one side and comes back on the other.
            x = (x + half + sign * 0.5 * seconds) % (aspect + self.size) - half
        elif self.motion == "up and down":
            reach = 0.5 - half - 0.02
            phase = math.asin(max(-1.0, min(1.0, (self.start[1] - 0.5) / reach)))
            y = 0.5 + reach * np.sin(phase + self.turn[1] * 2 * math.pi * seconds / 2.8)
        elif self.motion == "circle":
            centre = (aspect / 2, 0.5)
            angle = math.atan2(self.start[1] - centre[1], self.start[0] - centre[0])
            radius = 0.5 - half - 0.04
            turned = angle + self.turn[0] * 2 * math.pi * seconds / 3.2
            middle = (self.start[0] - radius * math.cos(angle), self.start[1] - radius * math.sin(angle))
            # A start far from the centre is drawn in within a second, so that the circle stays in the picture.
            drawn_in = np.clip(seconds, 0, 1)
            reached = (_kept(middle[0], radius + half, aspect), 0.5)
            x = middle[0] + (reached[0] - middle[0]) * drawn_in + radius * np.cos(turned)
            y = middle[1] + (reached[1] - middle[1]) * drawn_in + radius * np.sin(turned)
        elif self.motion == "bounce":
            x = _between_walls(x + self.turn[0] * 0.55 * seconds, half, aspect - half)
            y = _between_walls(y + self.turn[1] * 0.45 * seconds, half, 1 - half)
        return np.stack([x, y], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Event:
    """From ``frame`` on the first object has another ``colour`` or ``motion``."""

    frame: int
    what: str
    value: str


@dataclass(frozen=True)
class Scene:
    """An endless clip. ``aspect`` is width over height; ``hills`` shapes the horizon."""

    things: tuple[Thing, ...]
    background: str
    camera: str
    event: Event | None
    aspect: float
    hills: tuple[float, float]
    wording: int

    def spans(self) -> list[tuple[int, tuple[Thing, ...]]]:
        """The objects as they are from each frame on."""
        if self.event is None:
            return [(0, self.things)]
        first, *others = self.things
        if self.event.what == "colour":
            changed = replace(first, colour=self.event.value)
        else:
            x, y = first.positions(np.array([self.event.frame]), self.aspect)[0]
            changed = replace(first, motion=self.event.value, start=(float(x), float(y)), since=self.event.frame)
        return [(0, self.things), (self.event.frame, (changed, *others))]

    def things_at(self, frame: int) -> tuple[Thing, ...]:
        return [things for since, things in self.spans() if since <= frame][-1]

    def combinations(self) -> Iterator[tuple[str, str, str, str]]:
        """(kind, colour, motion, background) of every object, before and after the event."""
        for _, things in self.spans():
            for thing in things:
                yield thing.kind, thing.colour, thing.motion, self.background


def _between_walls(position: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    span = high - low
    return low + span - np.abs((position - low) % (2 * span) - span)


def _kept(position: float, margin: float, length: float) -> float:
    return min(max(position, margin), max(margin, length - margin))


def is_held_out(combination: tuple[str, str, str, str]) -> bool:
    """Whether training never sees this (kind, colour, motion, background)."""
    digest = sha256("|".join(combination).encode()).digest()
    return combination[2] != STILL and digest[0] % HELD_OUT_OF == 0


def draw_scene(seed: int, aspect: float = 2.0, held_out: bool = False, frames: int = 5 * CHUNK_FRAMES) -> Scene:
    """The scene of a seed; with ``held_out`` one whose first object is never trained on, else one without any.

    An event falls within the first ``frames``.
    """
    random = np.random.default_rng([seed, int(held_out)])
    while True:
        scene = _draw(random, aspect, frames, plain=held_out)
        found = [is_held_out(combination) for combination in scene.combinations()]
        if found[0] if held_out else not any(found):
            return scene


def _draw(random: np.random.Generator, aspect: float, frames: int, plain: bool) -> Scene:
    motion = str(random.choice(list(MOTIONS)))
    things = [_thing(random, motion, aspect, ())]
    if not plain and random.random() < 0.2:
        motion = str(random.choice([STILL, *MOTIONS]))
        things.append(_thing(random, motion, aspect, (things[0].colour,)))
    event = None
    if not plain and random.random() < 0.35:
        what = str(random.choice(EVENTS))
        now = getattr(things[0], what)
        choices = [name for name in (COLOURS if what == "colour" else MOTIONS) if name != now]
        event = Event(int(random.integers(CHUNK_FRAMES, frames)), what, str(random.choice(choices)))
    return Scene(
        things=tuple(things),
        background=str(random.choice(list(BACKGROUNDS))),
        camera="pan" if random.random() < 0.25 else "still",
        event=event,
        aspect=aspect,
        hills=(float(random.uniform(0, 10)), float(random.uniform(0.6, 0.75))),
        wording=int(random.integers(0, 1 << 16)),
    )


def _thing(random: np.random.Generator, motion: str, aspect: float, without: tuple[str, ...]) -> Thing:
    size = float(random.uniform(0.42, 0.50))
    margin = size / 2 + 0.03
    return Thing(
        kind=str(random.choice(KINDS)),
        colour=str(random.choice([name for name in COLOURS if name not in without])),
        motion=motion,
        size=size,
        start=(float(random.uniform(margin, aspect - margin)), float(random.uniform(margin, 1 - margin))),
        pace=float(random.uniform(0.9, 1.1)),
        turn=(int(random.choice([-1, 1])), int(random.choice([-1, 1]))),
    )


# ------------------------------------------------------------------------------------------------------- captions


def caption(scene: Scene, chunk: int) -> str:
    """What is true of chunk number ``chunk``; an event in it is told with "then", or as what the event leads to."""
    first = chunk * CHUNK_FRAMES
    event, style = scene.event, scene.wording + 7 * chunk
    happens = event is not None and first <= event.frame < first + CHUNK_FRAMES
    told = happens and style % 2 == 0
    things = scene.things_at(first if told else first + CHUNK_FRAMES - 1)
    action = " and ".join(f"{_named(thing)} {PHRASES[thing.motion]}" for thing in things)
    where = BACKGROUNDS[scene.background][0]
    sentence = f"{where}, {action}" if style % 3 == 0 else f"{action} {where}"
    if told and event is not None:
        what = f"turns {event.value}" if event.what == "colour" else PHRASES[event.value]
        subject = "it" if len(things) == 1 else f"the {things[0].kind}"
        sentence += f", then {subject} {what}"
    sentence = sentence[0].upper() + sentence[1:] + "."
    if scene.camera != "still" or style % 4 == 0:
        sentence += " " + CAMERAS[scene.camera]
    return sentence


def _named(thing: Thing) -> str:
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {thing.kind}"


# ------------------------------------------------------------------------------------------------------ rendering


def render(scene: Scene, width: int, height: int, first: int, count: int) -> Array:
    """Frames ``first`` to ``first + count`` as [F,3,height,width] in 0..1."""
    times = np.arange(first, first + count)
    y, x = np.meshgrid(
        (np.arange(height, dtype=np.float32) + 0.5) / height,
        (np.arange(width, dtype=np.float32) + 0.5) / height,
        indexing="ij",
    )
    picture = _scenery(scene, x, y, times, height)
    spans = scene.spans()
    for number in range(len(scene.things)):
        for index, (since, things) in enumerate(spans):
            until = spans[index + 1][0] if index + 1 < len(spans) else first + count
            now = (times >= since) & (times < until)
            if now.any():
                _paint(picture, now, things[number], x, y, times[now], scene.aspect, height)
    return picture


def _scenery(scene: Scene, x: Array, y: Array, times: NDArray[np.int64], height: int) -> Array:
    """[F,3,H,W]; a still camera sees one picture."""
    _, above, below = BACKGROUNDS[scene.background]
    moving = scene.camera == "pan"
    shift = times[:, None, None] * np.float32(PAN_SPEED) if moving else np.zeros((1, 1, 1), np.float32)
    phase, level = scene.hills
    at = x[None] + shift + phase
    if scene.background == "hall":  # columns of half a height
        inside = np.clip(0.5 + np.sin(2 * math.pi * at) * height / (2 * math.pi) / 1.5, 0, 1)
    else:
        horizon = level + 0.06 * np.sin(2 * math.pi * at / 1.3) + 0.04 * np.sin(2 * math.pi * at / 0.7)
        inside = np.clip(0.5 + (y[None] - horizon) * height / 1.5, 0, 1)
    inside = inside.astype(np.float32)[:, None]
    a, b = (np.array(c, np.float32)[None, :, None, None] for c in (above, below))
    scenery = a + (b - a) * inside
    return scenery if moving else np.repeat(scenery, len(times), axis=0)


def _paint(
    picture: Array, now: NDArray[np.bool_], thing: Thing, x: Array, y: Array, times: NDArray[np.int64],
    aspect: float, height: int,
) -> None:  # fmt: skip
    centres = thing.positions(times, aspect)
    dx, dy = x[None] - centres[:, 0, None, None], y[None] - centres[:, 1, None, None]
    cover = np.clip(0.5 - distance(thing.kind, dx, dy, thing.size / 2) * height / 1.5, 0, 1)[:, None]
    colour = np.array(COLOURS[thing.colour], np.float32)[None, :, None, None]
    picture[now] += cover * (colour - picture[now])


def distance(kind: str, dx: Array, dy: Array, radius: float) -> Array:
    """Signed distance to an object's outline at offsets (dx, dy) from its centre; negative inside."""
    if kind == "ball":
        return np.hypot(dx, dy) - np.float32(radius)
    if kind == "ring":
        width = np.float32(0.27 * radius)
        return np.abs(np.hypot(dx, dy) - (np.float32(radius) - width)) - width
    if kind == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - np.float32(0.88 * radius)
    # An upright triangle: its base below, the two sides mirrored.
    slope = np.float32(math.atan2(2.0, 1.0))
    sides = np.abs(dx) * np.sin(slope) + (-dy - np.float32(radius)) * np.cos(slope)
    return np.maximum(sides, dy - np.float32(radius))
