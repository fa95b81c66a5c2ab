"""HeliosPipeline: the headless library's front door, with the keyword names of diffusers' pipelines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chain import ChunkSampler, check_chain, sample_chunks
from .checkpoint import load_transformer, open_folder
from .errors import HeliosError
from .guidance import guided
from .history import CHUNK_FRAMES, History, check_size
from .samplers import DMDSampler, OnStep, SchedulerConfig, Velocity
from .text import TextEncoder
from .transformer import HeliosTransformer
from .vae import WanVAE, load_vae
from .video import frames_to_uint8

MAX_TEXT_TOKENS = 512
OUTPUT_TYPES = ("np", "pt", "uint8", "latent")


@dataclass(frozen=True)
class VariantDefaults:
    """What a variant is released with, where the caller says nothing."""

    guidance_scale: float
    num_frames: int
    steps: tuple[int, ...]


VARIANT_DEFAULTS = {"distilled": VariantDefaults(guidance_scale=1.0, num_frames=240, steps=(2, 2, 2))}


@dataclass(frozen=True)
class HeliosOutput:
    """A whole clip. ``frames`` as asked for by ``output_type`` (None for ``latent``); ``latents`` are the
    generated chunks [B,16,9n,H/8,W/8], normalised model space."""

    frames: Any
    latents: Tensor


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a stream: ``frames`` [B,33,H,W,3] uint8, or None where only latents were asked for."""

    index: int
    latents: Tensor
    frames: Tensor | None
    history: History


class HeliosPipeline:
    """Text to video from a released folder; the folder decides the variant and thereby the sampler."""

    def __init__(
        self,
        transformer: HeliosTransformer,
        vae: WanVAE,
        text_encoder: Callable[[], TextEncoder],
        variant: str,
        scheduler: SchedulerConfig,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.transformer, self.vae = transformer, vae
        self._text_encoder = text_encoder
        self.variant, self.scheduler = variant, scheduler
        self.device, self.dtype = device, dtype

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo_id: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> HeliosPipeline:
        """Loads a released folder. The text encoder is read at the first prompt.

        Raises:
            HeliosError: the folder is absent, foreign, incomplete or damaged.
        """
        folder = open_folder(folder_or_repo_id)
        if folder.variant not in VARIANT_DEFAULTS:
            raise HeliosError(
                f"{folder.path} holds Helios-{folder.variant.capitalize()}, which this version cannot sample; "
                "use a Distilled folder."
            )
        return cls(
            transformer=load_transformer(folder, dtype, device),
            vae=load_vae(folder.path / "vae", torch.float32, device),
            text_encoder=functools.cache(lambda: TextEncoder.from_folder(folder.path, dtype, device)),
            variant=folder.variant,
            scheduler=SchedulerConfig.from_dict(folder.scheduler),
            device=torch.device(device),
            dtype=dtype,
        )

    def velocity(self, *args: Any, **kwargs: Any) -> Tensor:
        """The transformer's prediction; arguments as in :meth:`HeliosTransformer.forward`."""
        return self.transformer(*args, **kwargs)

    @torch.no_grad()
    def __call__(self, *args: Any, output_type: str = "np", **kwargs: Any) -> HeliosOutput:
        """Generates a whole clip in memory; arguments as in :meth:`stream`.

        ``output_type``: ``np`` (float32 array [B,F,H,W,3] in 0..1), ``pt`` (float tensor [B,F,3,H,W] in 0..1),
        ``uint8`` (tensor [B,F,H,W,3]) or ``latent`` (no decoding). F is 33 per chunk.
        """
        if output_type not in OUTPUT_TYPES:
            raise HeliosError(f"output_type={output_type!r} is unknown; use one of {', '.join(OUTPUT_TYPES)}.")
        latents, frames = [], []
        for chunk_latents, _ in self._latent_chunks(*args, **kwargs):
            latents.append(chunk_latents)
            if output_type != "latent":
                frames.append(_as_output(self.decode(chunk_latents), output_type))
        joined = torch.cat(latents, dim=2)
        if not frames:
            return HeliosOutput(None, joined)
        concatenate = np.concatenate if output_type == "np" else torch.cat
        return HeliosOutput(concatenate(frames, 1), joined)

    @torch.no_grad()
    def stream(self, *args: Any, output_type: str = "uint8", **kwargs: Any) -> Iterator[Chunk]:
        """Yields a :class:`Chunk` as soon as it is finished; memory does not grow with the clip.

        Args:
            prompt: a string, or a list of strings for a batch.
            negative_prompt: used when ``guidance_scale`` is above 1.
            prompt_embeds, negative_prompt_embeds: [B,512,D] in place of the prompts.
            height, width: pixels, divisible by 64 for a 3-stage pyramid.
            num_frames: rounded up to whole chunks of 33; ``None`` for the variant's default.
            pyramid_num_inference_steps_list: steps per stage.
            guidance_scale: classifier-free guidance runs above 1.
            is_amplify_first_chunk: twice the steps in chunk 0 (Distilled).
            generator: a torch.Generator; a fresh CPU generator seeded with 0 where absent.
            on_step: ``on_step(chunk)`` returns the callback for that chunk's steps.
            output_type: ``uint8``, or ``latent`` for no frames.
        """
        for latents, history in self._latent_chunks(*args, **kwargs):
            frames = None if output_type == "latent" else _as_output(self.decode(latents), "uint8")
            yield Chunk(history.chunk - 1, latents, frames, history)

    def steps_per_chunk(self, num_frames: int, steps: Sequence[int] | None = None) -> list[int]:
        """Network steps of every chunk of a clip, for a progress bar."""
        sampler = self._sampler(steps or VARIANT_DEFAULTS[self.variant].steps)
        return [sampler.total_steps(chunk) for chunk in range(chunk_count(num_frames))]

    def decode(self, latents: Tensor) -> Tensor:
        """One chunk's latents [B,16,9,h,w] (normalised) -> frames [B,3,33,H,W] in -1..1."""
        return self.vae.decode(self.vae.denormalise(latents.to(self.vae.dtype)))

    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor:
        """Prompts -> text embeddings [B,512,D] in the pipeline's type."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        return self._text_encoder().encode(prompts, MAX_TEXT_TOKENS).to(self.device, self.dtype)

    def _latent_chunks(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        height: int = 384,
        width: int = 640,
        num_frames: int | None = None,
        pyramid_num_inference_steps_list: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        is_amplify_first_chunk: bool = True,
        generator: torch.Generator | None = None,
        on_step: Callable[[int], OnStep] | None = None,
    ) -> Iterator[tuple[Tensor, History]]:
        defaults = VARIANT_DEFAULTS[self.variant]
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        sampler = self._sampler(pyramid_num_inference_steps_list or defaults.steps, is_amplify_first_chunk)
        num_chunks = chunk_count(defaults.num_frames if num_frames is None else num_frames)
        batch = self._batch_size(prompt, prompt_embeds)
        check_size(width, height, sampler.size_multiple)
        history = History.empty(width, height, batch)
        check_chain(sampler, history, num_chunks)

        text = self._text(prompt, prompt_embeds, "prompt")
        negative = None
        if scale > 1:
            empty = "" if negative_prompt is None and negative_prompt_embeds is None else negative_prompt
            repeated = [empty] * batch if isinstance(empty, str) else empty
            negative = self._text(repeated, negative_prompt_embeds, "negative_prompt")
        return sample_chunks(
            self._velocity_factory(text, negative, scale),
            sampler,
            history,
            num_chunks,
            torch.Generator("cpu").manual_seed(0) if generator is None else generator,
            device=self.device,
            dtype=self.dtype,
            on_step=on_step,
        )

    def _velocity_factory(self, text: Tensor, negative: Tensor | None, scale: float) -> Callable[[History], Velocity]:
        prompts = [self.transformer.prepare_text(x) for x in (text, negative) if x is not None]

        def velocity_for(history: History) -> Velocity:
            prepared = self.transformer.prepare_history(*(x.to(self.device, self.dtype) for x in history.context()))

            def conditioned(prompt) -> Velocity:
                return lambda latents, timestep: self.transformer(latents.to(self.dtype), timestep, prompt, prepared)

            velocities = [conditioned(prompt) for prompt in prompts]
            return velocities[0] if len(velocities) == 1 else guided(*velocities, scale)

        return velocity_for

    def _sampler(self, steps: Sequence[int], amplify_first_chunk: bool = True) -> ChunkSampler:
        return DMDSampler(tuple(steps), amplify_first_chunk, self.scheduler)

    def _batch_size(self, prompt: Any, embeds: Tensor | None) -> int:
        if (prompt is None) == (embeds is None):
            raise HeliosError("prompt and prompt_embeds: give exactly one of them.")
        if embeds is not None:
            return embeds.shape[0]
        return 1 if isinstance(prompt, str) else len(prompt)

    def _text(self, prompt: Any, embeds: Tensor | None, name: str) -> Tensor:
        if embeds is None:
            return self.encode_prompt(prompt)
        expected = self.transformer.config.text_dim
        if embeds.ndim != 3 or embeds.shape[-1] != expected:
            raise HeliosError(f"{name}_embeds has shape {list(embeds.shape)}; it must be [B,512,{expected}].")
        return embeds.to(self.device, self.dtype)


def chunk_count(num_frames: int) -> int:
    """Chunks that hold ``num_frames``, at least one."""
    if num_frames < 1:
        raise HeliosError(f"num_frames={num_frames} must be at least 1; a chunk is {CHUNK_FRAMES} frames.")
    return -(-num_frames // CHUNK_FRAMES)


def _as_output(video: Tensor, output_type: str) -> Any:
    """[B,3,F,H,W] in -1..1 -> the frames of one chunk as ``output_type`` wants them."""
    if output_type == "uint8":
        return torch.stack([frames_to_uint8(clip) for clip in video])
    unit = (video.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit.permute(0, 2, 1, 3, 4)
    return unit.permute(0, 2, 3, 4, 1).cpu().numpy()
