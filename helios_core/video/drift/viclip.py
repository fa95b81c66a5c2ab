"""ViCLIP, which embeds 8 frames as one: how near they are to the film's prompt.

Layers and text are transformers' CLIP; how frames become tokens is ViCLIP's own. Frames are brought to its size and
normalised as HeliosBench does, which is CLIP's way and not that of ViCLIP's authors. HeliosBench takes 8 frames of the
whole film, and 8 of each end for drift, where here every 8 scored frames are a group.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoint.load import check_state_dict
from ...checkpoint.text import require
from ...errors import HeliosError, reason
from .aesthetic import tensors_of

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".sft")
# Of CLIP's training pictures, red, green and blue.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64
VISION, TEXT = "vision_encoder", "text_encoder"
# Theirs and transformers', replaced in this order.
NAMES = (
    (f"{VISION}.proj", "visual_projection.weight"),
    (f"{TEXT}.text_projection", "text_projection.weight"),
    (f"{TEXT}.token_embedding.", "text_model.embeddings.token_embedding."),
    (f"{TEXT}.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (f"{VISION}.conv1.", "vision_model.embeddings.conv1."),
    (f"{VISION}.class_embedding", "vision_model.embeddings.class_embedding"),
    (f"{VISION}.positional_embedding", "vision_model.embeddings.positional_embedding"),
    (f"{VISION}.temporal_positional_embedding", "vision_model.embeddings.temporal_positional_embedding"),
    (f"{VISION}.", "vision_model."),
    (f"{TEXT}.", "text_model."),
    (".transformer.resblocks.", ".encoder.layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".c_fc.", ".fc1."),
    (".c_proj.", ".fc2."),
    (".ln_pre.", ".pre_layrnorm."),
    (".ln_post.", ".post_layernorm."),
    (".ln_final.", ".final_layer_norm."),
)


class ViClip:
    """A ViCLIP checkpoint as its authors released it, as a PyTorch or safetensors file.

    Args:
        tokenizer: a released CLIP folder; ViCLIP's tokens are CLIP's.

    Raises:
        HeliosError: transformers is absent, the file holds no whole ViCLIP, or the folder no tokenizer of its tokens.
    """

    def __init__(self, path: Path, tokenizer: Path, device: torch.device | str = "cpu"):
        self._tokenizer = _tokenizer(tokenizer)
        model = _network(path, self._tokenizer.eos_token_id)
        known, given = model.config.text_config.vocab_size, len(self._tokenizer)
        if known != given:
            raise HeliosError(f"{path.name} knows {known} tokens, and the tokenizer of {tokenizer.name} {given}.")
        self._model = model.eval().requires_grad_(False).to(device)
        self._side = model.config.vision_config.image_size
        self.frames = model.vision_model.embeddings.temporal_positional_embedding.shape[1]

    def shrunk(self, frame: np.ndarray) -> np.ndarray:
        """What HeliosBench lets it see of uint8 [H,W,3]: the middle square, uint8 [side,side,3]."""
        side, shorter = self._side, min(frame.shape[:2])
        size = [side * length // shorter for length in frame.shape[:2]]
        image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
        image = F.interpolate(image, size, mode="bicubic")[0].clamp(0, 255).round().byte()
        top, left = (round((length - side) / 2) for length in size)
        return image[:, top : top + side, left : left + side].permute(1, 2, 0).numpy()

    def clip(self, frames: Sequence[np.ndarray]) -> Tensor:
        """The projected embedding [D] of ``frames`` frames as one, each as :meth:`shrunk` makes it."""
        device = self._model.device
        mean, std = (torch.tensor(x, device=device) for x in (MEAN, STD))
        pixels = (torch.from_numpy(np.stack(frames)).to(device).float() / 255 - mean) / std
        seen = self._model.vision_model(pixel_values=pixels.permute(3, 0, 1, 2)[None])
        return self._model.visual_projection(seen.pooler_output)[0].cpu()

    def text(self, prompt: str) -> Tensor:
        """The projected embedding [D] of a prompt; the released ViCLIP reads its first 32 tokens."""
        return embedded_text(self._model, self._tokenizer, prompt)


@dataclass(frozen=True)
class ViClipScore:
    """A :class:`.meter.GroupScorer`: ``semantic``, the cosine of a prompt's embedding [D] and that of frames."""

    viclip: ViClip
    prompt: Tensor
    name: str = "semantic"

    @property
    def size(self) -> int:
        return self.viclip.frames

    def shrunk(self, frame: np.ndarray) -> np.ndarray:
        return self.viclip.shrunk(frame)

    def __call__(self, frames: Sequence[np.ndarray]) -> float:
        return F.cosine_similarity(self.viclip.clip(frames), self.prompt, dim=0).item()


def embedded_text(model: Any, tokenizer: Any, prompt: str) -> Tensor:
    """The projected embedding [D] of a prompt by transformers' CLIPModel; what it cannot read is cut off."""
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt").to(model.device)
    return model.text_projection(model.text_model(**tokens).pooler_output)[0].cpu()


def viclip_files(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Those of ``files`` that have ViCLIP in their name or a folder's below ``folder``; the largest first."""
    found = [x for x in files if x.suffix.lower() in SUFFIXES and "viclip" in str(x.relative_to(folder)).lower()]
    return sorted(found, key=lambda path: -path.stat().st_size)


class _ClipEmbeddings(nn.Module):
    """Tokens of a clip: one for all of it, then every frame's patches, each with its place and its time."""

    def __init__(self, frames: int, grid: int, patch: int, width: int):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.conv1 = nn.Conv3d(3, width, (1, patch, patch), stride=(1, patch, patch), bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid**2, width))
        self.temporal_positional_embedding = nn.Parameter(torch.empty(1, frames, width))

    def forward(self, pixel_values: Tensor, **_: Any) -> Tensor:
        """[1,3,frames,H,W] -> [1,1+frames*grid*grid,width]."""
        patches = self.conv1(pixel_values).flatten(3).permute(0, 2, 3, 1)
        patches = patches + self.positional_embedding[1:] + self.temporal_positional_embedding[:, :, None]
        whole = self.class_embedding + self.positional_embedding[0]
        return torch.cat([whole[None, None], patches.flatten(1, 2)], dim=1)


def _tokenizer(folder: Path) -> Any:
    transformers = require("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Transformers fails in whatever a foreign folder meets first.
    except Exception as error:
        raise HeliosError(f"ViCLIP takes the tokenizer of {folder.name}, which has none ({reason(error)}).") from error


def _network(path: Path, end: int) -> Any:
    """A checkpoint as transformers' CLIPModel, float32; ``end`` is the token that ends a text."""
    try:
        tensors = _tensors(path)
        model = _skeleton(tensors, end)
        state = _renamed(tensors)
    except pickle.UnpicklingError:  # torch's own words advise to switch the check off
        raise HeliosError(
            f"{path.name} holds more than plain weights, or is damaged; take ViClip-InternVid-10M-FLT.pth."
        ) from None
    # Reading fails in whatever a foreign file meets first.
    except Exception as error:
        raise HeliosError(f"{path.name} is no whole ViCLIP ({reason(error)}).") from error
    check_state_dict(model, state, path, "ViCLIP")
    model.load_state_dict(state, assign=True)
    return model


def _tensors(path: Path) -> dict[str, Tensor]:
    """Both towers of a checkpoint; its temperature does not matter to a cosine."""
    content = tensors_of(path)
    return {name: x for name, x in content.get("model", content).items() if name.startswith((f"{VISION}.", f"{TEXT}."))}


def _skeleton(tensors: Mapping[str, Tensor], end: int) -> nn.Module:
    """CLIP of the sizes of ``tensors``, without memory for its weights."""
    transformers = require("transformers")
    width, *_, patch = tensors[f"{VISION}.conv1.weight"].shape
    frames = tensors[f"{VISION}.temporal_positional_embedding"].shape[1]
    grid = math.isqrt(len(tensors[f"{VISION}.positional_embedding"]) - 1)
    vocabulary, text_width = tensors[f"{TEXT}.token_embedding.weight"].shape
    length = len(tensors[f"{TEXT}.positional_embedding"])
    config = transformers.CLIPConfig(
        vision_config=_tower(tensors, VISION, width) | {"patch_size": patch, "image_size": grid * patch},
        text_config=_tower(tensors, TEXT, text_width)
        | {"vocab_size": vocabulary, "max_position_embeddings": length, "eos_token_id": end},
        projection_dim=tensors[f"{VISION}.proj"].shape[1],
    )
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
        model.vision_model.embeddings = _ClipEmbeddings(frames, grid, patch, width)
    # No part of a checkpoint.
    model.text_model.embeddings.position_ids = torch.arange(length)[None]
    model.logit_scale = None
    return model


def _tower(tensors: Mapping[str, Tensor], tower: str, width: int) -> dict[str, Any]:
    blocks = f"{tower}.transformer.resblocks."
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{blocks}0.mlp.c_fc.weight"]),
        "num_hidden_layers": sum(name.startswith(blocks) and name.endswith(".ln_1.weight") for name in tensors),
        "num_attention_heads": width // HEAD_WIDTH,
        "hidden_act": "quick_gelu",
    }


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As transformers has them: queries, keys and values apart, and projections turned; float32."""
    state: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        name = theirs
        for old, new in NAMES:
            name = name.replace(old, new)
        if ".in_proj_" in name:
            parts = (name.replace("in_proj_", f"{x}_proj.") for x in "qkv")
            state |= zip(parts, tensor.float().chunk(3), strict=True)
        else:
            state[name] = tensor.float().T if name.endswith("_projection.weight") else tensor.float()
    return state
