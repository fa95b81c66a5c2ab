"""Films of an unfinished model as one picture, so that whoever watches a run sees what it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from helios_core.networks.transformer import HeliosTransformer
from helios_core.networks.vae import WanVAE
from helios_core.samplers import BaseSampler, DMDSampler, PyramidSampler, draw_noise

from .data import HISTORY, Batch
from .model import velocity
from .vae import decode


@torch.no_grad()
def films(
    model: HeliosTransformer,
    embeddings: Tensor,
    empty: Tensor,
    sampler: BaseSampler | PyramidSampler | DMDSampler,
    size: tuple[int, int],
    chunks: int = 2,
    guidance: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Text to video for every row of ``embeddings``: latents [B,16,9*chunks,h,w]. ``empty`` guides away from no text.

    ``size`` is (h, w) in latents.
    """
    count = len(embeddings)
    generator = torch.Generator().manual_seed(seed)
    made: list[Tensor] = []
    for chunk in range(chunks):
        past = torch.cat(made, dim=2) if made else torch.zeros(count, 16, 0, *size)
        history = torch.nn.functional.pad(past[:, :, -HISTORY:], (0, 0, 0, 0, max(0, HISTORY - past.shape[2]), 0))
        anchor = made[0][:, :, :1] if made else torch.zeros(count, 16, 1, *size)
        batch = Batch(torch.zeros(()), anchor, history, [])

        def guided(latents: Tensor, timestep: Tensor, batch: Batch = batch) -> Tensor:
            wanted = velocity(model, latents, timestep, embeddings, batch)
            if guidance == 1:
                return wanted
            unwanted = velocity(model, latents, timestep, empty.expand_as(embeddings), batch)
            return unwanted + guidance * (wanted - unwanted)

        noise = draw_noise((count, 16, 9, *size), generator)
        made.append(sampler.sample(guided, noise, generator, chunk))
    return torch.cat(made, dim=2)


@torch.no_grad()
def contact_sheet(vae: WanVAE, latents: Tensor, path: Path, columns: int = 8) -> None:
    """Writes films [B,16,9n,h,w] as rows of frames."""
    from PIL import Image

    rows = []
    for film in latents.split(1):
        chunks = [decode(vae, vae.denormalise(chunk), lean=True) for chunk in film.split(9, dim=2)]
        frames = torch.cat(chunks, dim=2)[0]
        shown = frames[:, torch.linspace(0, frames.shape[1] - 1, columns).round().long()]
        rows.append(shown.transpose(0, 1).permute(2, 0, 3, 1).flatten(1, 2))
    picture = ((torch.cat(rows).clamp(-1, 1) + 1) * 127.5).round().byte()
    Image.fromarray(picture.numpy()).save(path)


def sample_sheet(
    model: HeliosTransformer,
    averaged: dict[str, Tensor],
    vae: WanVAE,
    encode: Sequence[Tensor],
    sampler: BaseSampler | PyramidSampler | DMDSampler,
    size: tuple[int, int],
    path: Path,
    guidance: float = 3.0,
) -> None:
    """Films by the averaged weights; ``encode`` holds the prompts' and the empty embeddings."""
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        model.load_state_dict(averaged, strict=False)
        contact_sheet(vae, films(model, encode[0], encode[1], sampler, size, guidance=guidance), path)
    finally:
        model.load_state_dict(kept, strict=False)
