"""The drift report as a picture: one curve a measure over the film's chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import HeliosError
from .report import ENDS, SEAM, STRONG_SEAM, Drift, DriftReport, Measure

WIDTH, HEIGHT, DOTS = 11.0, 9.0, 100
CALM, NAMED, ENDS_SHADE, PROMPT = "#35618f", "#c0392b", "#eef2f6", "#7d3c98"
MOST_CHUNK_LINES = 100
# Curves keep at least this much room, in limits of their measure: noise must not look like drift.
LEAST_ROOM = 2.0


def matplotlib_figure() -> type:
    """Matplotlib's Figure; the package is needed here alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise HeliosError(
            "the drift plot needs matplotlib, which is not installed; run pip install matplotlib."
        ) from None
    return Figure


def figure(report: DriftReport) -> Any:
    """A matplotlib figure.

    Raises:
        HeliosError: matplotlib is not installed.
    """
    page = matplotlib_figure()(figsize=(WIDTH, HEIGHT), dpi=DOTS, layout="constrained")
    rows = page.subplots(len(report.drifts) + 1, 1, sharex=True)
    page.suptitle(f"{report.name}: {report.verdict()}", fontsize=11, x=0.01, ha="left", wrap=True)
    for axes, drift in zip(rows, report.drifts, strict=False):
        _curve(axes, report, drift)
    _seams(rows[-1], report)
    rows[-1].xaxis.get_major_locator().set_params(integer=True)
    rows[-1].set_xlabel(f"chunk of {report.chunk_frames} frames")
    return page


def picture(report: DriftReport) -> np.ndarray:
    """The plot as uint8 [H,W,3]. Raises as :func:`figure`."""
    page = figure(report)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(page)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_picture(report: DriftReport, path: Path) -> None:
    """The plot as a file, of the type that its name says.

    Raises:
        HeliosError: as :func:`figure`, an unknown type, or a path that cannot be written.
    """
    page = figure(report)
    try:
        page.savefig(path)
    except (OSError, ValueError) as error:
        raise HeliosError(f"--plot {path} cannot be written ({error}); give a writable .png, .svg or .pdf.") from None


def _curve(axes: Any, report: DriftReport, drift: Drift) -> None:
    measure = drift.measure
    values = report.chunks[measure.name]
    if measure.name == "hue":
        values = _unwrapped(values)
    colour = NAMED if drift.named else CALM
    _decorate(axes, report, measure)
    axes.plot(np.arange(len(values)) + 0.5, values, color=colour, marker="o", markersize=2.5, linewidth=1.5)
    if np.isfinite(values).any():
        low, high = np.nanmin(values), np.nanmax(values)
        room = max(high - low, LEAST_ROOM * measure.least, measure.share * abs(high)) * 1.2
        axes.set_ylim((low + high - room) / 2, (low + high + room) / 2)
    if drift.drift is not None:
        said = f"drift {drift.drift:.{measure.digits}f}"
        axes.set_title(said, loc="right", fontsize=8, color=colour, pad=2)


def _seams(axes: Any, report: DriftReport) -> None:
    values = report.chunks["seam"]
    _decorate(axes, report, SEAM)
    colours = [NAMED if value > STRONG_SEAM else CALM for value in np.nan_to_num(values)]
    axes.bar(np.arange(len(values)), np.nan_to_num(values), width=0.4, color=colours)
    axes.axhline(STRONG_SEAM, color="grey", linewidth=0.6, linestyle=":")
    axes.set_ylim(0, max(2 * STRONG_SEAM, np.nan_to_num(values).max() * 1.1))


def _decorate(axes: Any, report: DriftReport, measure: Measure) -> None:
    """Chunks, prompt changes and the two ends that are compared, behind a measure's curve."""
    count = len(report.chunks["luma"])
    length = report.frames / report.chunk_frames
    axes.set_xlim(0, max(length, 1e-6))
    for begin, end in ((0, length * ENDS), (length * (1 - ENDS), length)):
        axes.axvspan(begin, end, color=ENDS_SHADE, zorder=0)
    if count <= MOST_CHUNK_LINES:
        for chunk in range(1, count):
            axes.axvline(chunk, color="#d5d8dc", linewidth=0.5, zorder=1)
    for chunk in report.prompt_changes:
        axes.axvline(chunk, color=PROMPT, linewidth=1.2, linestyle="--", zorder=2)
    axes.set_title(f"{measure.name}, {measure.unit}", loc="left", fontsize=8, pad=2)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.3)


def _unwrapped(degrees: np.ndarray) -> np.ndarray:
    """Degrees without jumps from 360 to 0; nan stays."""
    known = np.isfinite(degrees)
    shown = degrees.copy()
    shown[known] = np.unwrap(degrees[known], period=360)
    return shown
