"""The frozen parts that the stages share: the VAE with the released latent statistics, and the text side."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helios_core.checkpoint.vae_names import vae_to_diffusers
from helios_core.commands.tiny_weights import VAE_CONFIG
from helios_core.networks.vae import WanVAE

from . import vae as training_vae
from .text import write_text
from .trainer import averaged_weights
from .world import CHUNK_FRAMES, draw_scene, render


@torch.no_grad()
def latent_statistics(vae: WanVAE, clips: int = 48, lean: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [16] of the latents of chunks of the world."""
    latents = []
    for seed in range(clips):
        frames = render(draw_scene(seed), training_vae.WIDTH, training_vae.HEIGHT, 0, CHUNK_FRAMES)
        video = torch.from_numpy(frames).transpose(0, 1)[None] * 2 - 1
        latents.append(training_vae.encode(vae, video, lean)[0])
    values = torch.cat(latents).transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1)


@torch.no_grad()
def with_statistics(vae: WanVAE, mean: Tensor, std: Tensor) -> WanVAE:
    """The same VAE with latents of another scale: where they had ``mean`` and ``std`` they have the released ones.

    Core ComfyUI assumes the released statistics for every Wan VAE. Both 1x1 convolutions at the latents absorb the
    change, so what the VAE decodes from what it encodes stays the same.
    """
    moved = copy.deepcopy(vae)
    wanted_mean, wanted_std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    scale = wanted_std / std
    weight, bias = moved.conv1.weight, moved.conv1.bias
    weight[:16] *= scale.view(-1, 1, 1, 1, 1)
    bias[:16] = (bias[:16] - mean) * scale + wanted_mean
    bias[16:] += 2 * scale.log()
    moved.conv2.bias += moved.conv2.weight.flatten(1) @ (mean - wanted_mean / scale)
    moved.conv2.weight /= scale.view(1, -1, 1, 1, 1)
    return moved


def write_parts(runs: Path, base_dim: int = 8, clips: int = 48) -> Path:
    """Freezes the VAE run's averaged weights and writes ``vae/``, ``text_encoder/`` and ``tokenizer/`` to ``parts``."""
    vae = training_vae.new_vae(base_dim)
    vae.load_state_dict(averaged_weights(runs / "vae"))
    vae = with_statistics(vae, *latent_statistics(vae, clips))
    folder = runs / "parts"
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    (folder / "vae" / "config.json").write_text(json.dumps({**VAE_CONFIG, "base_dim": base_dim}, indent=2) + "\n")
    tensors = {name: tensor.half().contiguous() for name, tensor in vae_to_diffusers(vae.state_dict()).items()}
    save_file(tensors, folder / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    write_text(folder)
    return folder
