"""The drift report: figures of every chunk, of the beginning against the end, and what they amount to."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import HeliosError
from ...variants import CHUNK_FRAMES
from ..reader import VideoReader
from .meter import DriftMeter, GroupScorer, Scorer

# HeliosBench: drift is the difference between the first and the last 15 % of frames.
ENDS = 0.15
# Below it, of white, the mean colour is grey and has no hue.
LEAST_COLOUR = 0.02
# A seam's difference is told in times of what is usual within chunks, but of at least one grey level: a keyframe alone
# makes 1.1 levels at crf 18 in a still picture of fine texture, 1.7 at 23 and 3 at 30.
LEAST_DIFFERENCE = 1.0
STRONG_SEAM = 2.0


@dataclass(frozen=True)
class Measure:
    """What one figure is called, and when its change is worth naming; the limits are a rule of thumb of ours.

    ``least`` is an absolute difference, ``share`` one relative to the larger value; both must be exceeded.
    """

    name: str
    unit: str
    least: float
    share: float = 0.0
    digits: int = 3


MEASURES = (
    Measure("luma", "of white", 0.04),
    Measure("contrast", "of white", 0.03),
    Measure("saturation", "of white", 0.04),
    Measure("hue", "degrees", 15.0, digits=1),
    Measure("sharpness", "grey levels squared", 1.0, share=0.3, digits=1),
    Measure("motion", "pixels a frame", 0.5, share=0.5, digits=2),
)
SCORES = (
    Measure("aesthetic", "of 10", 0.5, digits=2),
    Measure("semantic", "cosine of frame and prompt, by CLIP", 0.03),
)
GROUP_SCORES = (Measure("semantic", "cosine of 8 frames and prompt, by ViCLIP", 0.03),)
SEAM = Measure("seam", "times the inside of a chunk", STRONG_SEAM, digits=2)


ABSENT = {
    "aesthetic": "it takes CLIP ViT-L/14 and LAION's head, in ComfyUI's models/clip_vision or by --clip-vision",
    "semantic": "it takes the film's prompt and CLIP, on the command line by --clip-vision",
}


@dataclass(frozen=True)
class Scores:
    """What other networks measure of a film, of single frames and of groups of them, and why not what they do not."""

    scorer: Scorer | None = None
    absent: Mapping[str, str] = field(default_factory=lambda: ABSENT)
    groups: GroupScorer | None = None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The scores that are measured."""
        names = self.scorer.names if self.scorer else ()
        together = (self.groups.name,) if self.groups else ()
        return (*(x for x in SCORES if x.name in names), *(x for x in GROUP_SCORES if x.name in together))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(measure.name for measure in self.measures)


NO_SCORES = Scores()


@dataclass(frozen=True)
class Drift:
    """One measure at the film's two ends; None where it has no value there."""

    measure: Measure
    start: float | None
    end: float | None
    drift: float | None

    @property
    def named(self) -> bool:
        """Whether the change is worth naming."""
        if self.drift is None or self.start is None or self.end is None:
            return False
        larger = max(abs(self.start), abs(self.end))
        return self.drift > self.measure.least and self.drift > self.measure.share * larger


@dataclass(frozen=True)
class DriftReport:
    """Figures of one film.

    Attributes:
        chunks: every measure and ``seam`` by name, a value a chunk; nan where there is none. A seam is that between
            the chunk and the one before.
        prompt_changes: chunks at which the prompt changed, as the caller told.
        notes: sentences about the file.
        not_measured: scores of other networks by name, each with the reason that it is not there.
    """

    name: str
    frames: int
    width: int
    height: int
    fps: float | None
    chunk_frames: int
    chunks: dict[str, np.ndarray]
    drifts: tuple[Drift, ...]
    prompt_changes: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    not_measured: Mapping[str, str] = field(default_factory=dict)

    @property
    def seams(self) -> list[int]:
        """Chunks that follow a strong seam."""
        return [int(chunk) for chunk in np.flatnonzero(np.nan_to_num(self.chunks["seam"]) > STRONG_SEAM)]

    @property
    def faults(self) -> list[str]:
        """Names of the measures that drift, and ``seam`` where at least half of the seams are strong."""
        borders = int(np.isfinite(self.chunks["seam"]).sum())
        seam = [SEAM.name] if borders and 2 * len(self.seams) >= borders else []
        return [drift.measure.name for drift in self.drifts if drift.named] + seam

    def as_dict(self) -> dict[str, Any]:
        """What the JSON holds; null for what has no value."""
        return {
            "name": self.name,
            "frames": self.frames,
            "width": self.width,
            "height": self.height,
            "fps": self.fps,
            "chunk_frames": self.chunk_frames,
            "faults": self.faults,
            "seams": self.seams,
            "prompt_changes": list(self.prompt_changes),
            "notes": list(self.notes),
            "not_measured": dict(self.not_measured),
            "drift": {
                x.measure.name: {"start": x.start, "end": x.end, "drift": x.drift, "unit": x.measure.unit}
                for x in self.drifts
            },
            "chunks": {name: [_plain(value) for value in values] for name, values in self.chunks.items()},
        }

    def json(self) -> str:
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False)

    def text(self) -> str:
        """A table of the two ends, and one line that says what drifts."""
        count = len(self.chunks["luma"])
        rate = "" if self.fps is None else f", {self.fps:g} fps"
        chunks = f"{count} {'chunk' if count == 1 else 'chunks'} of {self.chunk_frames}"
        lines = [
            f"{self.name}: {self.frames} frames, {self.width}x{self.height}{rate}, {chunks}",
            f"{'':12}{'first 15 %':>12}{'last 15 %':>12}{'drift':>12}",
        ]
        for x in self.drifts:
            values = "".join(f"{_shown(value, x.measure):>12}" for value in (x.start, x.end, x.drift))
            lines.append(f"{x.measure.name:12}{values}  {x.measure.unit}{'  <-' if x.named else ''}")
        absent = [f"Not measured: {name} ({why})." for name, why in self.not_measured.items()]
        return "\n".join([*lines, self.verdict(), *self.notes, *absent])

    def verdict(self) -> str:
        """One sentence."""
        shown = [
            f"{x.measure.name} ({_shown(x.start, x.measure)} to {_shown(x.end, x.measure)})"
            for x in self.drifts
            if x.named
        ]
        said = f"Drift: {', '.join(shown)}." if shown else "No drift."
        seams = self.seams
        if not seams:
            return said
        listed = ", ".join(map(str, seams[:12])) + (" and more" if len(seams) > 12 else "")
        return f"{said} Seams before {'chunk' if len(seams) == 1 else 'chunks'} {listed}."


def report_file(
    source: str | Path | io.BytesIO,
    name: str = "video",
    chunk_frames: int = CHUNK_FRAMES,
    prompt_changes: Sequence[int] = (),
    scores: Scores = NO_SCORES,
) -> DriftReport:
    """Measures a video file, frame by frame in constant memory.

    Raises:
        HeliosError: OpenCV is absent, or the file cannot be read.
    """
    with VideoReader(source) as reader:
        return report_video(reader, name, chunk_frames, prompt_changes, scores=scores)


def report_video(
    reader: VideoReader,
    name: str,
    chunk_frames: int = CHUNK_FRAMES,
    prompt_changes: Sequence[int] = (),
    watched: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]] = iter,
    scores: Scores = NO_SCORES,
) -> DriftReport:
    """Measures an open file; ``watched`` passes its frames on. Raises as :func:`report_file`."""
    meter = _measured(watched(reader), chunk_frames, scores)
    notes = []
    if reader.hdr:
        notes.append(f"The file is HDR ({reader.hdr}): the figures are of its coded values, not of brightness.")
    if reader.uneven:
        notes.append("The frame rate varies: chunks and ends are counted in frames, not in seconds.")
    return _report(meter, name, reader.fps, chunk_frames, prompt_changes, notes, scores)


def report_frames(
    frames: Iterable[np.ndarray],
    name: str = "frames",
    chunk_frames: int = CHUNK_FRAMES,
    changes: Sequence[int] = (),
    scores: Scores = NO_SCORES,
) -> DriftReport:
    """Measures frames, uint8 [H,W,3] each. Raises as :func:`report_file`."""
    meter = _measured(frames, chunk_frames, scores)
    if not len(meter):
        raise HeliosError(f"{name} holds no frames; give at least one.")
    return _report(meter, name, None, chunk_frames, changes, [], scores)


def _measured(frames: Iterable[np.ndarray], chunk_frames: int, scores: Scores) -> DriftMeter:
    if chunk_frames < 2:
        raise HeliosError(f"chunk_frames={chunk_frames} must be at least 2; a Helios chunk is {CHUNK_FRAMES} frames.")
    meter = DriftMeter(scores.scorer, scores.groups)
    for frame in frames:
        meter.add(frame)
    meter.finish()
    return meter


def _report(
    meter: DriftMeter,
    name: str,
    fps: float | None,
    chunk_frames: int,
    changes: Sequence[int],
    notes: list[str],
    scores: Scores,
) -> DriftReport:
    measures = (*MEASURES, *scores.measures)
    series = {m.name: meter.series(m.name) for m in measures if m.name != "hue"}
    # Across a border the motion is the seam's.
    series["motion"][::chunk_frames] = np.nan
    colour = meter.series("hue_x") + 1j * meter.series("hue_y")
    count = len(meter)
    if count < chunk_frames:
        notes = [*notes, f"The film has {count} frames, less than a chunk of {chunk_frames}: it has no seams."]
    ends = max(1, int(count * ENDS))
    borders = range(chunk_frames, count, chunk_frames)
    parts = [slice(begin, begin + chunk_frames) for begin in range(0, count, chunk_frames)]
    chunks = {key: np.array([_mean(values[part]) for part in parts]) for key, values in series.items()}
    chunks["hue"] = np.array([_hue(colour[part]) for part in parts])
    chunks["seam"] = seam_strengths(meter.series("unpredicted"), borders, chunk_frames)
    drifts = tuple(
        _circular(m, colour[:ends], colour[-ends:])
        if m.name == "hue"
        else _drift(m, _mean(series[m.name][:ends]), _mean(series[m.name][-ends:]))
        for m in measures
    )
    size = meter.width, meter.height
    return DriftReport(
        name, count, *size, fps, chunk_frames, chunks, drifts, tuple(changes), tuple(notes), scores.absent
    )


def seam_strengths(unpredicted: np.ndarray, borders: range, chunk_frames: int) -> np.ndarray:
    """How much each chunk's first frame differs from what the motion before it predicts.

    In times of the median within the two chunks, without their first two frames: the second is predicted from the
    motion across the border. One value a chunk, nan for the first.
    """
    strengths = [float("nan")]
    for border in borders:
        around = np.arange(max(0, border - chunk_frames), min(len(unpredicted), border + chunk_frames))
        inside = unpredicted[around[around % chunk_frames >= 2]]
        usual = np.median(inside[np.isfinite(inside)]) if np.isfinite(inside).any() else float("nan")
        strengths.append(float(unpredicted[border] / max(usual, LEAST_DIFFERENCE)))
    return np.array(strengths)


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _drift(measure: Measure, start: float, end: float) -> Drift:
    return Drift(measure, _plain(start), _plain(end), _plain(abs(start - end)))


def _circular(measure: Measure, start: np.ndarray, end: np.ndarray) -> Drift:
    begin, last = _hue(start), _hue(end)
    return Drift(measure, _plain(begin), _plain(last), _plain(abs((last - begin + 180) % 360 - 180)))


def _hue(colour: np.ndarray) -> float:
    """Direction of the mean colour in degrees, 0 to 360; nan where it is nearly grey."""
    mean = colour.mean()
    return float(np.degrees(np.angle(mean))) % 360 if abs(mean) >= LEAST_COLOUR else float("nan")


def _plain(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _shown(value: float | None, measure: Measure) -> str:
    return "-" if value is None else f"{value:.{measure.digits}f}"
