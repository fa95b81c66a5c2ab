"""Scores of frames by CLIP: LAION's aesthetic head, and how near a frame is to the film's prompt.

HeliosBench's semantic score is of ViCLIP, which embeds several frames as one, and so is ours where there is a ViCLIP;
CLIP's is the mean over single frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
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
from .viclip import MEAN, STD, ViClip, ViClipScore, embedded_text, viclip_files


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
        return embedded_text(self._model, self._tokenizer, prompt)


@dataclass(frozen=True)
class ScoreModels:
    """What a folder like ComfyUI's models/clip_vision has for scores, and why not what it has not."""

    clip: Clip | None = None
    head: AestheticHead | None = None
    viclip: ViClip | None = None
    absent: Mapping[str, str] = field(default_factory=lambda: ABSENT)

    @classmethod
    def read(cls, folder: Path | None, device: torch.device | str = "cpu") -> ScoreModels:
        """Takes LAION's head, the CLIP folder whose embeddings it takes, and ViCLIP; None: there is nothing.

        Without transformers, or with a damaged CLIP, every score is absent; with a damaged ViCLIP, the semantic one.

        Raises:
            HeliosError: no folder.
        """
        if folder is None:
            return cls()
        if not folder.is_dir():
            raise HeliosError(f"--clip-vision {folder} is no folder; give one with a CLIP folder and LAION's head.")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        head = next(iter(heads(files)), None)
        folders = dict(_clip_folders(folder))
        viclip, viclip_fault = _viclip(folder, viclip_files(folder, files), list(folders), device)
        by_clip = viclip is None and viclip_fault is None
        clip, clip_fault = _clip(folder, folders, head, device) if head or by_clip else (None, None)
        reasons = {
            "aesthetic": clip_fault or (None if head else f"{folder} holds no head of LAION"),
            "semantic": clip_fault if by_clip else viclip_fault,
        }
        return cls(clip, head, viclip, {name: why for name, why in reasons.items() if why is not None})

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores of a film whose prompt is known."""
        return tuple(name for name in ABSENT if name not in self.absent)

    @property
    def semantic_by(self) -> str | None:
        """The network of the semantic score; None where there is none."""
        return None if "semantic" in self.absent else "CLIP" if self.viclip is None else "ViCLIP"

    def of(self, prompt: str | None) -> Scores:
        """The scores of a film of ``prompt``."""
        absent = dict(self.absent)
        if prompt is None:
            absent.setdefault("semantic", ABSENT["semantic"])
        judge = self.viclip or self.clip
        text = None if prompt is None or judge is None or "semantic" in absent else judge.text(prompt)
        groups = None if self.viclip is None or text is None else ViClipScore(self.viclip, text)
        scorer = None if self.clip is None else ClipScores(self.clip.frame, self.head, None if groups else text)
        return Scores(scorer if scorer is not None and scorer.names else None, absent, groups)


def _clip(
    folder: Path, found: Mapping[Path, int], head: AestheticHead | None, device: torch.device | str
) -> tuple[Clip | None, str | None]:
    """The first CLIP whose embeddings ``head`` takes, or why there is none."""
    fitting = [path for path, width in found.items() if head is None or width == head.width]
    if not fitting:
        width = f" of width {head.width}" if head is not None and found else ""
        return None, f"{folder} holds no CLIP folder{width}"
    try:
        return Clip(fitting[0], device), None
    except HeliosError as error:
        return None, str(error).rstrip(".")


def _viclip(
    folder: Path, files: Sequence[Path], clip_folders: Sequence[Path], device: torch.device | str
) -> tuple[ViClip | None, str | None]:
    """The first whole ViCLIP, or why there is none although there are ``files`` of that name."""
    if files and not clip_folders:
        return None, f"ViCLIP takes the tokenizer of a CLIP folder, and {folder} holds none"
    faults = []
    for path in files:
        try:
            return ViClip(path, clip_folders[0], device), None
        except HeliosError as error:
            faults.append(str(error).rstrip("."))
    return None, faults[0] if faults else None


def _clip_folders(folder: Path) -> Iterator[tuple[Path, int]]:
    """Folders of a whole CLIP, each with the width of its embeddings."""
    for path in sorted(folder.rglob("config.json")):
        with contextlib.suppress(HeliosError):
            config = read_json(path)
            if config.get("model_type") == "clip" and isinstance(config.get("projection_dim"), int):
                yield path.parent, config["projection_dim"]
