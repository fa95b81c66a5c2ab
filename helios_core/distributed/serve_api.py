"""The fields of the service: a request as a row of a farm's table, and a film as clients are told of it.

They are those of OpenAI's video API as vLLM-Omni and SGLang extend it; README.md beside this file has all three side by
side. What would change the film and cannot be done here is refused by name, never ignored.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..errors import HeliosError, shortened
from .farm_worker import Renderer
from .jobs import BadRow, Job, Sizes, job_of

Status = Literal["queued", "in_progress", "completed", "failed"]

DEFAULT_SECONDS = "4"
LARGEST_SIDE = 4096  # pixels
LARGEST_IMAGE = 20_000_000  # bytes of a picture as it is sent
# Names of the request and the table's columns that they fill.
COLUMNS = {
    "prompt": "prompt",
    "prompt_schedule": "prompt_schedule",
    "negative_prompt": "negative_prompt",
    "width": "width",
    "height": "height",
    "fps": "fps",
    "num_frames": "duration",
    "seconds": "seconds",
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
}
VIDEO_PARAMS = ("width", "height", "fps", "num_frames")
# They say nothing of what the film shows.
WITHOUT_EFFECT = {"user", "quality", "generator_device"}
REFERENCES = ("input_reference", "image_reference", "reference_url")


@dataclass
class Video:
    """A film that was asked for; ``message`` is why it failed, the times are Unix seconds."""

    job: Job
    model: str
    status: Status = "queued"
    message: str = ""
    created_at: int = field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    seconds: float | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed")

    def end(self, message: str, seconds: float | None = None) -> None:
        """``message`` empty: the film is there."""
        self.status, self.message = ("failed", message) if message else ("completed", "")
        self.completed_at, self.seconds = int(time.time()), seconds

    def response(self, chunks_done: int) -> dict[str, Any]:
        """As clients are told of it."""
        job = self.job
        status = "in_progress" if self.status == "queued" and chunks_done else self.status
        progress = 100 if status == "completed" else min(99, 100 * chunks_done // job.chunks)
        return {
            "id": job.id,
            "object": "video",
            "model": self.model,
            "prompt": job.rows[0][1],
            "status": status,
            "progress": progress,
            "created_at": self.created_at,
            "completed_at": self.completed_at,
            "expires_at": None,
            "size": f"{job.width}x{job.height}",
            "seconds": f"{math.ceil(job.frames / job.fps)}",
            "quality": "standard",
            "remixed_from_video_id": None,
            "media_type": "video/mp4",
            "inference_time_s": self.seconds,
            "error": {"code": "failed", "message": self.message} if self.message else None,
        }


def video_of(request: Mapping[str, Any], name: str, models: Mapping[str, str], inputs: Path, sizes: Sizes) -> Video:
    """The film that a request asks for.

    Args:
        name: its id.
        models: what is served, by the name that clients use; the first is the default.
        inputs: folder in which a picture is kept.

    Raises:
        HeliosError: a field that is unknown, wrong, or cannot be followed.
    """
    known = {*COLUMNS, *WITHOUT_EFFECT, *REFERENCES, "model", "size", "video_params"}
    given = {key: value for key, value in request.items() if not (value is None or value is False or value == "")}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise HeliosError(f"{unknown[0]}={shortened(given[unknown[0]])} is not offered here; leave it out.")
    model = given.get("model", next(iter(models)))
    if not isinstance(model, str) or model not in models:
        raise HeliosError(f"model={shortened(model)} is not served; use one of {', '.join(models)}.")
    cells = {"model": models[model], **_cells(given)}
    picture = _reference(given)
    if picture is not None:
        cells["image"] = str(_kept(picture, inputs / f"{name}.png"))
    job = job_of({**cells, "id": name}, 1, inputs, {}, sizes)
    if isinstance(job, BadRow):
        raise HeliosError(job.message)
    if max(job.width, job.height) > LARGEST_SIDE:
        raise HeliosError(f"size={job.width}x{job.height} is larger than {LARGEST_SIDE} a side; ask for a smaller one.")
    return Video(job, model)


def checked(video: Video, renderer: Renderer) -> Video:
    """The film as workers take it. Raises HeliosError."""
    video.job = renderer.checked(video.job)
    return video


def _cells(given: Mapping[str, Any]) -> dict[str, str]:
    nested = given.get("video_params", {})
    if not isinstance(nested, Mapping) or nested.keys() - set(VIDEO_PARAMS):
        raise HeliosError(f"video_params={shortened(nested)} takes {', '.join(VIDEO_PARAMS)} alone.")
    fields = {**{key: value for key, value in nested.items() if value is not None}, **given}
    if "size" in fields:
        fields |= _size(fields["size"])
    if "num_frames" in fields:
        fields.pop("seconds", None)
    else:
        fields.setdefault("seconds", DEFAULT_SECONDS)
    return {column: _cell(key, fields[key]) for key, column in COLUMNS.items() if key in fields}


def _size(size: Any) -> dict[str, str]:
    width, _, height = str(size).partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise HeliosError(f"size={shortened(size)} is no size; write it like 640x384.")
    return {"width": width, "height": height}


def _cell(name: str, value: Any) -> str:
    if isinstance(value, list) and name == "num_inference_steps":
        return " ".join(map(str, value))
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value if isinstance(value, str) else json.dumps(value)
    raise HeliosError(f"{name}={shortened(value)} is neither text nor a number.")


def _reference(given: Mapping[str, Any]) -> bytes | None:
    """The picture that the film begins from: only what is in the request, so that the server asks no other for it."""
    named = [name for name in REFERENCES if name in given]
    if not named:
        return None
    value = given[named[0]]
    if isinstance(value, Mapping):
        value = value.get("image_url")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.startswith("data:image/") or ";base64," not in value:
        raise HeliosError(f"{named[0]}={shortened(value, 40)} is no picture; send data:image/png;base64,... in it.")
    try:
        return base64.b64decode(value.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise HeliosError(f"{named[0]} is no base64; send data:image/png;base64,... in it.") from None


def _kept(picture: bytes, path: Path) -> Path:
    """The picture as a file that the film's key and its worker read."""
    if len(picture) > LARGEST_IMAGE:
        raise HeliosError(
            f"the picture has {len(picture):,} bytes, at most {LARGEST_IMAGE:,} are read; send a smaller one."
        )
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            opened.convert("RGB").save(path)
    except (OSError, ValueError, Image.DecompressionBombError):
        raise HeliosError("the picture cannot be read; send a whole PNG, JPEG or WebP.") from None
    return path
