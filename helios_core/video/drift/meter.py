"""What is measured of every frame, and of every frame against the one before."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np

from ...errors import HeliosError

# One frame for each of the latent's: CLIP takes longer for one than all other measures do, and an end of the shortest
# film, 15 % of a chunk, still has one.
EVERY = 4

# The longer side at which motion is followed: 11 ms a frame of one core, against 50 at 640 pixels.
FLOW_SIZE = 320
# HeliosBench's own settings of Farneback's method.
FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
SMALLEST_FLOW = 16
WHITE = 255.0
SERIES = ("luma", "contrast", "saturation", "hue_x", "hue_y", "sharpness", "motion", "unpredicted")


class Scorer(Protocol):
    """A network that rates frames, uint8 [H,W,3]: a number for each of ``names``."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, frame: np.ndarray) -> Mapping[str, float]: ...


class GroupScorer(Protocol):
    """A network that rates ``size`` of every fourth frames as one: a number called ``name``."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def shrunk(self, frame: np.ndarray) -> np.ndarray:
        """What it sees of a frame; kept until the frame's group is whole."""

    def __call__(self, frames: Sequence[np.ndarray]) -> float: ...


def opencv() -> ModuleType:
    """OpenCV, which is needed here alone."""
    try:
        import cv2
    except ImportError:
        raise HeliosError(
            "the drift report needs OpenCV, which is not installed; run pip install opencv-python-headless."
        ) from None
    return cv2


class _Groups:
    """Writes each group's score into ``values``, at the places of its frames; keeps the frames of one group alone."""

    def __init__(self, scorer: GroupScorer, values: array[float]) -> None:
        self._scorer, self._values = scorer, values
        self._frames: deque[np.ndarray] = deque(maxlen=scorer.size)
        self._unrated: list[int] = []

    def add(self, place: int, frame: np.ndarray) -> None:
        self._frames.append(self._scorer.shrunk(frame))
        self._unrated.append(place)
        if len(self._unrated) == self._scorer.size:
            self.rate()

    def rate(self) -> None:
        """Of frames that are no whole group: with those before them, or each several times where there are none."""
        if not self._unrated:
            return
        size, count = self._scorer.size, len(self._frames)
        score = self._scorer([self._frames[i * count // size] for i in range(size)])
        for place in self._unrated:
            self._values[place] = score
        self._unrated.clear()


class DriftMeter:
    """Measures frames as they come and keeps only the figures: 32 bytes a frame, and 4 more a score.

    Of a frame, in shares of white where nothing else is said:
        luma: mean of the grey picture (Rec. 601).
        contrast: its standard deviation.
        saturation: mean of the largest less the smallest of red, green and blue.
        hue: direction of the mean colour, kept as a vector (x towards red, y from blue to green).
        sharpness: variance of its Laplacian, in grey levels (0..255) squared.
    Of a frame and those before it; nan where there are none, or the picture is too small:
        motion: mean length of Farneback's optical flow, in pixels a frame.
        unpredicted: mean grey difference between the frame and the one before moved on as it had been moving, in grey
            levels: little while motion goes on, much at a seam or a cut.
    Of every fourth frame what ``scorer`` says, and what ``groups`` says of its group, where they are there; nan of the
    others.
    """

    def __init__(self, scorer: Scorer | None = None, groups: GroupScorer | None = None) -> None:
        self._cv2 = opencv()
        self._scorer = scorer
        self._scores = (*(scorer.names if scorer else ()), *((groups.name,) if groups else ()))
        self._series = {name: array("f") for name in (*SERIES, *self._scores)}
        self._groups = _Groups(groups, self._series[groups.name]) if groups else None
        self._grey: np.ndarray | None = None
        self._flow: np.ndarray | None = None
        self.width = self.height = 0

    def __len__(self) -> int:
        return len(self._series["luma"])

    def series(self, name: str) -> np.ndarray:
        """One of ``SERIES`` or a score, a value a frame, float64."""
        return np.asarray(self._series[name], dtype=np.float64)

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 [H,W,3]."""
        cv2, add = self._cv2, self._add
        frame = np.ascontiguousarray(frame)
        self.height, self.width = frame.shape[:2]
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        mean, deviation = cv2.meanStdDev(grey)
        add("luma", mean[0, 0] / WHITE)
        add("contrast", deviation[0, 0] / WHITE)
        parts = cv2.split(frame)
        spread = cv2.subtract(cv2.max(cv2.max(*parts[:2]), parts[2]), cv2.min(cv2.min(*parts[:2]), parts[2]))
        add("saturation", cv2.mean(spread)[0] / WHITE)
        red, green, blue, _ = cv2.mean(frame)
        add("hue_x", (red - (green + blue) / 2) / WHITE)
        add("hue_y", (green - blue) * 3**0.5 / 2 / WHITE)
        add("sharpness", cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1][0, 0] ** 2)
        self._score(frame, len(self) - 1)
        self._follow(grey)

    def finish(self) -> None:
        """After the last frame: rates the last group, whole or not."""
        if self._groups is not None:
            self._groups.rate()

    def _score(self, frame: np.ndarray, place: int) -> None:
        chosen = place % EVERY == 0
        scores = self._scorer(frame) if chosen and self._scorer is not None else {}
        for name in self._scores:
            self._add(name, scores.get(name, float("nan")))
        if chosen and self._groups is not None:
            self._groups.add(place, frame)

    def _follow(self, grey: np.ndarray) -> None:
        scale = FLOW_SIZE / max(grey.shape)
        if scale < 1:
            size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
            grey = self._cv2.resize(grey, size, interpolation=self._cv2.INTER_AREA)
        before, moving = self._grey, self._flow
        self._grey, self._flow = grey, None
        motion = unpredicted = float("nan")
        if before is not None and before.shape == grey.shape and min(grey.shape) >= SMALLEST_FLOW:
            self._flow = self._cv2.calcOpticalFlowFarneback(before, grey, None, **FARNEBACK)
            motion = float(np.linalg.norm(self._flow, axis=2).mean()) / min(scale, 1.0)
            if moving is not None:
                unpredicted = float(self._cv2.absdiff(grey, self._moved(before, moving)).mean())
        self._add("motion", motion)
        self._add("unpredicted", unpredicted)

    def _moved(self, grey: np.ndarray, flow: np.ndarray) -> np.ndarray:
        """``grey`` one frame on; what a pixel shows then is now where it comes from."""
        y, x = np.mgrid[: grey.shape[0], : grey.shape[1]].astype(np.float32)
        return self._cv2.remap(
            grey, x - flow[..., 0], y - flow[..., 1], self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE
        )

    def _add(self, name: str, value: float) -> None:
        self._series[name].append(value)
