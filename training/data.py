"""Clips as latents, encoded once, and the batches that are drawn from them; the world's clips are kept in shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from helios_core.checkpoint.text import load_text_encoder
from helios_core.checkpoint.vae import load_vae
from helios_core.errors import HeliosError
from helios_core.networks.vae import WanVAE

from . import vae as training_vae
from .trainer import StepRandom
from .world import CHUNK_FRAMES, caption, draw_scene, render

CHUNKS, CLIPS_PER_SHARD = 5, 32
STATIC_FRAMES = 17  # long enough for the last latent of a still clip to have settled
TEXT_ROWS = 64
LONG, MID, SHORT = 16, 2, 1
HISTORY = LONG + MID + SHORT


@torch.no_grad()
def encode_chunks(vae: WanVAE, frames: Tensor, lean: bool = True) -> Tensor:
    """Frames [F,3,H,W] in 0..1, chunk by chunk, to normalised latents [F/33,16,9,H/8,W/8].

    Without ``lean`` any Wan 2.1 VAE works.
    """
    video = frames.unflatten(0, (-1, CHUNK_FRAMES)).transpose(1, 2) * 2 - 1
    return torch.cat([_encoded(vae, chunk[None], lean) for chunk in video])


@torch.no_grad()
def encode_still(vae: WanVAE, frame: Tensor, lean: bool = True, frames: int = STATIC_FRAMES) -> Tensor:
    """The last latent [16,1,H/8,W/8] of a clip that repeats ``frame`` [3,H,W]: what I2V puts into the history."""
    video = frame[None, :, None].expand(-1, -1, frames, -1, -1) * 2 - 1
    return _encoded(vae, video, lean)[0, :, -1:]


def _encoded(vae: WanVAE, video: Tensor, lean: bool) -> Tensor:
    return vae.normalise(training_vae.encode(vae, video, lean)[0] if lean else vae.encode(video)[0])


def write_shard(folder: Path, vae: WanVAE, shard: int, width: int, height: int) -> Path:
    """Encodes clips ``32 * shard`` to ``32 * shard + 31``: latents, still latents, captions. Skips a finished shard."""
    path = folder / f"{width}x{height}-{shard:05d}.safetensors"
    if path.is_file():
        return path
    latents, stills, captions = [], [], []
    for seed in range(CLIPS_PER_SHARD * shard, CLIPS_PER_SHARD * (shard + 1)):
        scene = draw_scene(seed, width / height)
        frames = torch.from_numpy(render(scene, width, height, 0, CHUNKS * CHUNK_FRAMES))
        latents.append(encode_chunks(vae, frames))
        stills.append(encode_still(vae, frames[0]))
        captions.append([caption(scene, chunk) for chunk in range(CHUNKS)])
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": torch.stack(latents).half(), "stills": torch.stack(stills).half()}
    partial = path.with_suffix(".part")
    save_file(tensors, partial, {"captions": json.dumps(captions)})
    partial.replace(path)
    return path


def write_shards(parts: Path, folder: Path, shards: range, width: int, height: int) -> None:
    """Encodes several shards with the frozen VAE."""
    vae = load_vae(parts)
    for shard in shards:
        write_shard(folder, vae, shard, width, height)
        print(f"shard {shard - shards.start + 1} of {len(shards)}", flush=True)


@dataclass(frozen=True)
class Batch:
    """What a step learns from: ``clean`` [B,16,9,h,w] chunks, what came before them, and their captions' numbers."""

    clean: Tensor
    anchor: Tensor
    history: Tensor
    captions: list[int]


@dataclass(frozen=True)
class Drops:
    """How often a sample is text to video (no history at all) or image to video (only its last frame), has no caption,
    or an exact history. Without ``anchor`` none has one: the paper's ablation, as is ``exact`` = 1.
    """

    text_to_video: float = 0.45
    image_to_video: float = 0.1
    caption: float = 0.1
    exact: float = 0.1
    corruption: float = 1 / 3
    anchor: bool = True


class Clips:
    """Clips of any number of chunks in memory, and the embeddings of their captions.

    Args:
        latents: per clip, its chunks [n,16,9,h,w], normalised.
        stills: per clip, :func:`encode_still` of its first frame [16,1,h,w].
        captions: per clip and chunk, the caption's row in ``embeddings`` [N,rows,D]; row 0 is that of no caption.
    """

    def __init__(
        self, latents: Sequence[Tensor], stills: Sequence[Tensor], captions: list[list[int]], embeddings: Tensor
    ):
        self.latents, self.stills, self.captions, self.embeddings = latents, stills, captions, embeddings

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.latents[0].shape[-2], self.latents[0].shape[-1]

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, random: StepRandom, size: int, drops: Drops) -> Batch:
        """Random chunks of random clips, with the drops and the history corruption of the paper's first stage."""
        clean, anchors, histories, captions = [], [], [], []
        for _ in range(size):
            clip = random.integer(len(self))
            chunk = random.integer(len(self.latents[clip]))
            kind = float(random.uniform())
            if drops.text_to_video <= kind < drops.text_to_video + drops.image_to_video:
                chunk = 0
            past = self.latents[clip][:chunk].transpose(0, 1).flatten(1, 2).float()
            first = self.latents[clip][0, :, :1].float()
            if kind < drops.text_to_video or chunk == 0:
                past, first = past[:, :0], torch.zeros_like(first)
            if drops.text_to_video <= kind < drops.text_to_video + drops.image_to_video:
                past, first = self.stills[clip].float(), self.latents[clip][0, :, :1].float()
            known = torch.cat([first, past[:, -HISTORY:]], dim=1)
            known = corrupted(known, random, drops)
            if not drops.anchor:
                known[:, :1] = 0
            anchors.append(known[:, :1])
            histories.append(torch.nn.functional.pad(known[:, 1:], (0, 0, 0, 0, HISTORY - known.shape[1] + 1, 0)))
            clean.append(self.latents[clip][chunk].float())
            captions.append(0 if float(random.uniform()) < drops.caption else self.captions[clip][chunk])
        return Batch(torch.stack(clean), torch.stack(anchors), torch.stack(histories), captions)


class WorldClips(Clips):
    """All shards of a size, and the frozen VAE; ``shown`` are the prompts of sample pictures."""

    def __init__(self, parts: Path, folder: Path, width: int, height: int, shown: Sequence[str] = ()):
        files = sorted(folder.glob(f"{width}x{height}-*.safetensors"))
        if not files:
            raise HeliosError(f"{folder} holds no {width}x{height} clips; run python -m training data first.")
        latents, stills = [], []
        numbers: dict[str, int] = {"": 0}
        captions: list[list[int]] = []
        for path in files:
            with safe_open(path, "pt") as file:
                latents.append(file.get_tensor("latents"))
                stills.append(file.get_tensor("stills"))
                for clip in json.loads(file.metadata()["captions"]):
                    captions.append([numbers.setdefault(text, len(numbers)) for text in clip])
        self.texts = list(numbers)
        encoder = load_text_encoder(parts)
        rows = [encoder.encode(self.texts[i : i + 64], TEXT_ROWS) for i in range(0, len(self.texts), 64)]
        super().__init__(torch.cat(latents), torch.cat(stills), captions, torch.cat(rows))
        self.shown = (encoder.encode(list(shown) or [""], TEXT_ROWS), self.embeddings[:1])
        self.vae = load_vae(parts)


def corrupted(known: Tensor, random: StepRandom, drops: Drops) -> Tensor:
    """Easy anti-drifting: every known frame of [16,F,h,w] gets noise of its own strength; unknown (zero) ones stay."""
    if float(random.uniform()) < drops.exact:
        return known
    sigma = drops.corruption * random.uniform((1, known.shape[1], 1, 1))
    sigma = sigma * (known != 0).any(dim=(0, 2, 3)).view(1, -1, 1, 1)
    return (1 - sigma) * known + sigma * random.normal(known.shape)
