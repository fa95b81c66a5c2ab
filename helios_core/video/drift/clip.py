"""Scores of frames by CLIP: LAION's aesthetic head, and how near a frame is to the film's prompt.

HeliosBench's semantic score is of ViCLIP, which embeds several frames as one; ours is the mean over single frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...checkpoint.folder import read_json
from ...errors import HeliosError, reason
from .aesthetic import AestheticHead, Embed, heads
from .report import ABSENT, Scores

# Of CLIP's training pictures, red, green and blue.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipScores:
    """A :class:`.meter.Scorer`: what CLIP says of a frame.

    Attributes:
        head: gives ``aesthetic``, 1 to 10, where it is there.
        prompt: a text's projected embedding [D]; gives ``semantic``, the cosine of text and frame, where it is there.
    """

    embed: Embed
    head: AestheticHead | None = None
    prompt: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        parts = (("aesthetic", self.head), ("semantic", self.prompt))
        return tuple(name for name, part in parts if part is not None)

    def __call__(self, frame: np.ndarray) -> dict[str, float]:
        embedding = self.embed(frame)
        scores = {} if self.head is None else {"aesthetic": self.head(embedding)}
        if self.prompt is not None:
            scores["semantic"] = F.cosine_similarity(embedding, self.prompt, dim=0).item()
        return scores


class Clip:
    """A released CLIP folder through transformers.

    Raises:
        HeliosError: transformers is absent, or the folder holds no whole CLIP.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError:
            raise HeliosError(
                "CLIP needs transformers, which is not installed; run pip install transformers."
            ) from None
        try:
            model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # Transformers fails in whatever a foreign folder meets first.
        except Exception as error:
            raise HeliosError(f"{folder.name} is no whole CLIP folder ({reason(error)}).") from error
        self._model = model.float().eval().requires_grad_(False).to(device)
        self._device = device

    def frame(self, frame: np.ndarray) -> Tensor:
        """The projected embedding [D] of uint8 [H,W,3]: its middle square, as CLIP was trained."""
        side = self._model.config.vision_config.image_size
        image = torch.from_numpy(np.ascontiguousarray(frame)).to(self._device).permute(2, 0, 1)[None].float() / 255
        scale = side / min(image.shape[2:])
        size = [max(side, round(length * scale)) for length in image.shape[2:]]
        image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((length - side) // 2 for length in size)
        mean, std = (torch.tensor(x, device=self._device).view(3, 1, 1) for x in (MEAN, STD))
        pixels = (image[:, :, top : top + side, left : left + side] - mean) / std
        return self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)[0].cpu()

    def text(self, prompt: str) -> Tensor:
        """The projected embedding [D] of a prompt; CLIP reads its first 77 tokens."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt").to(self._device)
        return self._model.text_projection(self._model.text_model(**tokens).pooler_output)[0].cpu()


@dataclass(frozen=True)
class ScoreModels:
    """What a folder like ComfyUI's models/clip_vision has for scores, and why not what it has not."""

    clip: Clip | None = None
    head: AestheticHead | None = None
    absent: Mapping[str, str] = field(default_factory=lambda: ABSENT)

    @classmethod
    def read(cls, folder: Path | None, device: torch.device | str = "cpu") -> ScoreModels:
        """Takes LAION's head, and the CLIP folder whose embeddings it takes; None: there is nothing.

        Without transformers, or with a damaged CLIP, every score is absent.

        Raises:
            HeliosError: no folder.
        """
        if folder is None:
            return cls()
        if not folder.is_dir():
            raise HeliosError(f"--clip-vision {folder} is no folder; give one with a CLIP folder and LAION's head.")
        found = dict(_clip_folders(folder))
        head = next(iter(heads(sorted(path for path in folder.rglob("*") if path.is_file()))), None)
        fitting = [path for path, width in found.items() if head is None or width == head.width]
        if not fitting:
            why = f"{folder} holds no CLIP folder" + (f" of width {head.width}" if head is not None and found else "")
            return cls(absent=dict.fromkeys(ABSENT, why))
        try:
            return cls(
                Clip(fitting[0], device), head, {} if head else {"aesthetic": f"{folder} holds no head of LAION"}
            )
        except HeliosError as error:
            return cls(absent=dict.fromkeys(ABSENT, str(error).rstrip(".")))

    def of(self, prompt: str | None) -> Scores:
        """The scores of a film of ``prompt``."""
        absent = dict(self.absent)
        if prompt is None:
            absent.setdefault("semantic", ABSENT["semantic"])
        if self.clip is None:
            return Scores(absent=absent)
        scorer = ClipScores(self.clip.frame, self.head, None if prompt is None else self.clip.text(prompt))
        return Scores(scorer if scorer.names else None, absent)


def _clip_folders(folder: Path) -> Iterator[tuple[Path, int]]:
    """Folders of a whole CLIP, each with the width of its embeddings."""
    for path in sorted(folder.rglob("config.json")):
        with contextlib.suppress(HeliosError):
            config = read_json(path)
            if config.get("model_type") == "clip" and isinstance(config.get("projection_dim"), int):
                yield path.parent, config["projection_dim"]
