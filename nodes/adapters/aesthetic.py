"""CLIP and LAION's head among the user's models, for the drift report's aesthetic score."""

from __future__ import annotations

from pathlib import Path

import comfy.clip_vision
import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...helios_core.checkpoint.header import read_header
from ...helios_core.errors import HeliosError, reason
from ...helios_core.video.drift.aesthetic import heads
from ...helios_core.video.drift.clip import ClipScores
from ...helios_core.video.drift.report import ABSENT, Scores
from .model_files import SINGLE_FILES

FOLDER = "clip_vision"
# Where a CLIP says how wide its embeddings are, and how many patches it sees: Hugging Face's names, then OpenAI's.
LAYOUTS = (
    ("visual_projection.weight", 0, "vision_model.embeddings.position_embedding.weight"),
    ("visual.proj", 1, "visual.positional_embedding"),
)


def installed_scores() -> Scores:
    """What the models in models/clip_vision can measure, and why not what they cannot."""
    files = [Path(path) for name in folder_paths.get_filename_list(FOLDER) if (path := _path(name))]
    found = list(heads(files))
    for head in found:
        fitting = sorted((patches, file) for file in files for width, patches in _clip(file) if width == head.width)
        if fitting:
            file = fitting[0][1]  # the fewest patches: heads are trained on 224 pixels, not on 336
            try:
                return Scores(ClipScores(_embedder(file), head), {"semantic": ABSENT["semantic"]})
            # Core fails in whatever a damaged file meets first, and the report needs no score.
            except Exception as error:
                return Scores(absent={**ABSENT, "aesthetic": f"{file.name} cannot be loaded: {reason(error)}"})
    if found:
        why = f"no CLIP in models/{FOLDER} makes the {found[0].width} numbers that the head there takes"
        return Scores(absent={**ABSENT, "aesthetic": why})
    return Scores()


def _path(name: str) -> str | None:
    return folder_paths.get_full_path(FOLDER, name)


def _clip(file: Path) -> list[tuple[int, int]]:
    """Width of its embeddings and its patches, where ``file`` is a CLIP."""
    try:
        tensors = read_header(file).tensors if file.suffix in SINGLE_FILES else {}
    except (HeliosError, OSError, ValueError):
        return []
    return [
        (tensors[projection].shape[side], tensors[positions].shape[0])
        for projection, side, positions in LAYOUTS
        if projection in tensors and positions in tensors
    ]


def _embedder(file: Path):
    """Core's CLIP as a function of one frame."""
    clip = comfy.clip_vision.load(str(file))
    if clip is None:
        raise HeliosError("core does not know this kind of CLIP")

    def embed(frame: np.ndarray) -> Tensor:
        image = torch.from_numpy(np.ascontiguousarray(frame)).unsqueeze(0).float() / 255
        return clip.encode_image(image)["image_embeds"][0].float()

    return embed
