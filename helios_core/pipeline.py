"""HeliosPipeline: the headless library's front door, with the keyword names of diffusers' pipelines."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_transformer, open_transformer
from .checkpoint.streaming import StreamedTransformer, check_offload, stream_transformer
from .checkpoint.text import load_text_encoder
from .checkpoint.vae import load_vae
from .errors import HeliosError, shortened
from .networks.text import TextEncoder
from .networks.transformer import HeliosTransformer, PreparedText, choose_attention, is_exact_attention
from .networks.transformer.fp8 import check_device
from .networks.vae import WanVAE
from .samplers import BaseSampler, DMDSampler, OnStep, PyramidSampler, SchedulerConfig, Velocity
from .samplers.guidance import guided
from .take.chunks import MOST_CHUNKS, ChunkSampler, sample_chunks
from .take.fingerprint import fingerprint, folder_fingerprint
from .take.history import History, check_size
from .take.prompts import DEFAULT_BLEND, PromptSchedule, mix_embeddings
from .take.reference import NoiseRange, frames_to_uint8, image_history, media_frames, video_history
from .take.store import start_key
from .take.take import KeyedChunks, Take
from .variants import CHUNK_FRAMES

MAX_TEXT_TOKENS = 512
SAMPLING_KEYWORDS = {
    "num_inference_steps",
    "pyramid_num_inference_steps_list",
    "solver",
    "use_zero_init",
    "zero_steps",
    "is_amplify_first_chunk",
}
OUTPUT_TYPES = ("np", "pt", "uint8", "latent")


@dataclass(frozen=True)
class VariantDefaults:
    """What a variant is released with, where the caller says nothing."""

    guidance_scale: float
    num_frames: int
    steps: tuple[int, ...]


VARIANT_DEFAULTS = {
    "base": VariantDefaults(guidance_scale=5.0, num_frames=99, steps=(50,)),
    "mid": VariantDefaults(guidance_scale=5.0, num_frames=99, steps=(20, 20, 20)),
    "distilled": VariantDefaults(guidance_scale=1.0, num_frames=240, steps=(2, 2, 2)),
}


@dataclass(frozen=True)
class HeliosOutput:
    """A whole clip. ``frames`` as asked for by ``output_type`` (None for ``latent``); ``latents`` are the
    generated chunks [B,16,9n,H/8,W/8], normalised model space."""

    frames: Any
    latents: Tensor


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a stream: ``frames`` [B,33,H,W,3] uint8, or None where only latents were asked for.

    In a take, ``key`` names it in the store, and ``reused`` tells that it was there already.
    """

    index: int
    latents: Tensor
    frames: Tensor | None
    history: History
    key: str = ""
    reused: bool = False


class HeliosPipeline:
    """Text, image or video to video from a released folder; the folder decides the variant and thereby the sampler."""

    def __init__(
        self,
        transformer: HeliosTransformer,
        vae: WanVAE,
        text_encoder: Callable[[], TextEncoder],
        variant: str,
        scheduler: SchedulerConfig,
        zero_star: bool,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path | None = None,
        inexact: tuple[str, ...] = (),
    ):
        """``inexact`` names options under which the video is another one: they tell takes apart."""
        self.folder, self.inexact = folder, inexact
        self.transformer, self.vae = transformer, vae
        self._text_encoder = text_encoder
        self.variant, self.scheduler, self.zero_star = variant, scheduler, zero_star
        self.device, self.dtype = device, dtype

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo_id: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        variant: str | None = None,
        vae: str | Path | None = None,
        text_encoder: str | Path | None = None,
        offload: str | None = None,
        attention: str = "auto",
        fp8_matmul: bool = False,
        compile: bool = False,  # noqa: A002 - the field's word
        cuda_graphs: bool = False,
    ) -> HeliosPipeline:
        """Loads a released folder, or a single transformer file in any known layout.

        The text encoder is read at the first prompt. ``variant`` is needed where a single file does not say which
        it is. A single file also needs ``vae`` (a VAE file, or a released folder), and ``text_encoder`` (a released
        folder) unless only embeddings are passed; with a folder they replace its own.

        ``offload`` trades speed for device memory: of the blocks of transformer and text encoder two are on the
        device at a time, and the VAE is there only while it works, decoding one latent at a time. ``"disk"`` reads
        the transformer's blocks from the file in every step, so that host memory does not grow with the model;
        ``"cpu"`` holds them in page-locked host memory. Latents are the same, bit for bit; frames are to rounding.

        ``attention``: ``auto`` for the first exact kernel that is installed and made for this GPU, or one of
        ``transformer.ATTENTION_NAMES``. ``fp8_matmul`` multiplies in 8 bits in all but the first and last 3 blocks:
        16.7 instead of 28.7 GB of weights, and not the same video. ``compile`` runs the blocks through torch.compile;
        the first chunk then takes longer. ``cuda_graphs`` records the network once per latent size and replays it.

        Raises:
            HeliosError: something is absent, foreign, incomplete or damaged, or an option does not fit the device.
        """
        check_offload(offload)
        options = {"fp8_matmul": fp8_matmul, "compile": compile, "cuda_graphs": cuda_graphs}
        check_speed_options(offload, options, device)
        chosen_attention = choose_attention(attention, device)
        source = open_transformer(folder_or_repo_id, variant)
        folder = source.path if source.path.is_dir() else None
        vae, text_encoder = vae or folder, text_encoder or folder
        if vae is None:
            raise HeliosError(f"{source.path} is a transformer alone; give vae= a VAE file or a released folder too.")

        def read_text_encoder() -> TextEncoder:
            if text_encoder is None:
                raise HeliosError(
                    f"{source.path} is a transformer alone; give text_encoder= a released folder, or prompt_embeds."
                )
            return load_text_encoder(text_encoder, dtype, device, streamed=offload is not None)

        transformer = (
            load_transformer(source, dtype, device, fp8_matmul)
            if offload is None
            else stream_transformer(source, dtype, device, offload)
        )
        transformer.attention = chosen_attention
        if compile:
            transformer.compile_blocks()
        if cuda_graphs:
            transformer.use_cuda_graphs()
        return cls(
            transformer=transformer,
            vae=load_vae(vae, torch.float32, "cpu" if offload else device),
            text_encoder=functools.cache(read_text_encoder),
            variant=source.variant,
            scheduler=SchedulerConfig.from_dict(source.scheduler),
            zero_star=source.is_cfg_zero_star,
            device=torch.device(device),
            dtype=dtype,
            folder=folder,
            inexact=("fp8_matmul",) * fp8_matmul + (attention,) * (not is_exact_attention(attention)),
        )

    def close(self) -> None:
        """Ends the reader thread of an offloaded pipeline and frees its buffers; dropping the pipeline does the same.

        The next block starts them again.
        """
        if isinstance(self.transformer, StreamedTransformer):
            self.transformer.stream.close()

    def velocity(self, *args: Any, **kwargs: Any) -> Tensor:
        """The transformer's prediction; arguments as in :meth:`HeliosTransformer.forward`."""
        return self.transformer(*args, **kwargs)

    @torch.no_grad()
    def __call__(self, *args: Any, output_type: str = "np", **kwargs: Any) -> HeliosOutput:
        """Generates a whole clip in memory; arguments as in :meth:`stream`, but for ``take``.

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
            prompt_schedule: rows of (first chunk, prompt) in place of one prompt, the first at chunk 0;
                ``blend`` chunks mix each change.
            height, width: pixels, divisible by 16, or by 64 for a 3-stage pyramid.
            num_frames: rounded up to whole chunks of 33; ``None`` for the variant's default.
            num_inference_steps: Base's steps; ``pyramid_num_inference_steps_list``: steps per stage of the others.
            guidance_scale: classifier-free guidance runs above 1.
            solver: ``unipc`` or ``euler`` (Base, Mid).
            use_zero_init, zero_steps: Mid's zero velocity in the first steps of stage 0, with guidance.
            is_amplify_first_chunk: twice the steps in chunk 0 (Distilled).
            is_skip_first_chunk: anchors the video anew at chunk 1.
            image: image to video: a PIL image, scaled to cover the size and cropped at the centre, or a float tensor
                [B,3,H,W] in 0..1 at that size.
            video: video to video: PIL images, or a float tensor [F,3,H,W] or [B,F,3,H,W] in 0..1, F at least 33.
            image_noise_sigma_min, image_noise_sigma_max: noise mixed into image and video history.
            generator: a torch.Generator; a fresh CPU generator seeded with 0 where absent.
            on_step: ``on_step(chunk)`` returns the callback for that chunk's steps.
            output_type: ``uint8``, or ``latent`` for no frames.
            take: keeps finished chunks on disk, and samples none that is there.
        """
        take: Take | None = kwargs.pop("take", None)
        keyed = None if take is None else KeyedChunks(take)
        for latents, history in self._latent_chunks(*args, **kwargs, keyed=keyed):
            frames = None if output_type == "latent" else _as_output(self.decode(latents), "uint8")
            key, reused = ("", False) if keyed is None else (keyed.key, keyed.reused)
            yield Chunk(history.chunk - 1, latents, frames, history, key, reused)

    def fingerprint(self, *parts: str) -> str:
        """Identity of the weights and settings in subfolders of the released folder.

        Raises:
            HeliosError: the pipeline was not loaded from a folder.
        """
        if self.folder is None:
            raise HeliosError("take needs a pipeline of from_pretrained, whose folder tells models apart.")
        return fingerprint([folder_fingerprint(self.folder / part) for part in parts], self.dtype, self.inexact)

    def steps_per_chunk(self, num_frames: int, **sampling: Any) -> list[int]:
        """Steps of every chunk of a clip, for a progress bar; sampler options as in :meth:`stream`."""
        sampler = self._sampler(**sampling)
        return [sampler.total_steps(chunk) for chunk in range(chunk_count(num_frames))]

    def decode(self, latents: Tensor) -> Tensor:
        """One chunk's latents [B,16,9,h,w] (normalised) -> frames [B,3,33,H,W] in -1..1."""
        is_offloaded = isinstance(self.transformer, StreamedTransformer)
        if is_offloaded:
            self.close()  # its buffers are the room that the VAE needs
        with self._vae_on_device() as vae:
            # Encoding keeps its larger passes: it decides latents, whose bits must not depend on memory.
            return vae.decode(vae.denormalise(latents.to(vae.dtype)), 1 if is_offloaded else None)

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
        prompt_schedule: Sequence[tuple[int, str]] | None = None,
        blend: int = DEFAULT_BLEND,
        height: int = 384,
        width: int = 640,
        num_frames: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        image: Any = None,
        video: Any = None,
        image_noise_sigma_min: float = NoiseRange.low,
        image_noise_sigma_max: float = NoiseRange.high,
        is_skip_first_chunk: bool = False,
        on_step: Callable[[int], OnStep] | None = None,
        keyed: KeyedChunks | None = None,
        **sampling: Any,
    ) -> Iterator[tuple[Tensor, History]]:
        defaults = VARIANT_DEFAULTS[self.variant]
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        if not math.isfinite(scale):
            raise HeliosError(f"guidance_scale={scale} is not a finite number; released: {defaults.guidance_scale}.")
        unknown = sorted(sampling.keys() - SAMPLING_KEYWORDS)
        if unknown:
            raise HeliosError(f"{unknown[0]} is not a keyword of HeliosPipeline; leave it out, or see stream().")
        sampler = self._sampler(**sampling)
        num_chunks = chunk_count(defaults.num_frames if num_frames is None else num_frames)
        batch = self._batch_size(prompt, prompt_embeds, prompt_schedule)
        check_size(width, height, sampler.size_multiple)
        noise = NoiseRange(image_noise_sigma_min, image_noise_sigma_max)
        rows = PromptSchedule(tuple([(0, prompt)] if prompt_schedule is None else prompt_schedule), blend)
        generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
        media = media_frames(image, video, width, height)
        if media is not None and batch % media.shape[0]:
            raise HeliosError(
                f"image or video has a batch of {media.shape[0]} for {batch} prompts; give one, or one per prompt."
            )

        schedule = PromptSchedule(
            tuple((first, self._text(row, prompt_embeds, "prompt")) for first, row in rows.rows), blend
        )
        negative = None
        if scale > 1:
            empty = "" if negative_prompt is None and negative_prompt_embeds is None else negative_prompt
            repeated = [empty] * batch if isinstance(empty, str) else empty
            negative = self._text(repeated, negative_prompt_embeds, "negative_prompt")
            if negative.shape[0] != batch:
                raise HeliosError(
                    f"negative_prompt has a batch of {negative.shape[0]} for {batch} prompts; match them."
                )
        history = self._history(media, image is not None, width, height, batch, generator, noise)
        history = replace(history, skip_first_chunk=is_skip_first_chunk)
        if keyed is not None:
            fixed = (self.fingerprint("transformer", "scheduler"), type(sampler).__name__, sampler, scale, negative)

            def determined_by(before: History) -> dict[str, Any]:
                return {"fixed": fixed, "text": schedule.at(before.chunk, mix_embeddings)}

            keyed.begin(fingerprint(start_key(history), generator.get_state()), determined_by)
        return sample_chunks(
            self._velocity_factory(schedule, negative, scale, sampler.zero_star),
            sampler,
            history,
            num_chunks,
            generator,
            guided=negative is not None,
            device=self.device,
            dtype=self.dtype,
            on_step=on_step,
            kept=keyed,
        )

    @contextmanager
    def _vae_on_device(self) -> Iterator[WanVAE]:
        """The VAE, moved to the device for as long as it works; at rest it may be a view of its file."""
        resting = [parameter.data for parameter in self.vae.parameters()]
        try:
            yield self.vae.to(self.device)
        finally:
            for parameter, data in zip(self.vae.parameters(), resting, strict=True):
                parameter.data = data

    def _history(
        self,
        media: Tensor | None,
        still: bool,
        width: int,
        height: int,
        batch: int,
        generator: torch.Generator,
        noise: NoiseRange,
    ) -> History:
        """Where the video begins: nothing, an image, or a clip [B,3,F,H,W]."""
        if media is None:
            return History.empty(width, height, batch)
        media = media.to(self.device, self.vae.dtype)
        with self._vae_on_device() as vae:
            if still:
                begun = image_history(media[:, :, 0], vae.encode, vae.normalise, generator, noise=noise)
            else:
                begun = video_history(media, vae.encode, vae.normalise, generator, noise=noise)
        repeat = batch // begun.latents.shape[0]
        if repeat == 1:
            return begun
        assert begun.anchor is not None
        latents, anchor = (x.repeat_interleave(repeat, dim=0) for x in (begun.latents, begun.anchor))
        return replace(begun, latents=latents, anchor=anchor)

    def _velocity_factory(
        self, schedule: PromptSchedule[Tensor], negative: Tensor | None, scale: float, zero_star: bool
    ) -> Callable[[History], Velocity]:
        unconditional = None if negative is None else self.transformer.prepare_text(negative)
        in_force: list[tuple[Tensor, PreparedText]] = []

        def prepared_prompt(chunk: int) -> PreparedText:
            """Prepared once per prompt: a row in force yields the same tensor at each of its chunks."""
            text = schedule.at(chunk, mix_embeddings)
            if not in_force or in_force[0][0] is not text:
                in_force[:] = [(text, self.transformer.prepare_text(text))]
            return in_force[0][1]

        def velocity_for(history: History) -> Velocity:
            prepared = self.transformer.prepare_history(*(x.to(self.device, self.dtype) for x in history.context()))

            def conditioned(prompt: PreparedText) -> Velocity:
                return lambda latents, timestep: self.transformer(latents.to(self.dtype), timestep, prompt, prepared)

            positive = conditioned(prepared_prompt(history.chunk))
            if unconditional is None:
                return positive
            return guided(positive, conditioned(unconditional), scale, zero_star)

        return velocity_for

    def _sampler(
        self,
        num_inference_steps: int | None = None,
        pyramid_num_inference_steps_list: Sequence[int] | None = None,
        solver: str = "unipc",
        use_zero_init: bool = True,
        zero_steps: int = 1,
        is_amplify_first_chunk: bool = True,
    ) -> ChunkSampler:
        """The variant's sampler; options of other variants have no effect, as in the reference."""
        released = VARIANT_DEFAULTS[self.variant].steps
        steps = tuple(pyramid_num_inference_steps_list or released)
        if self.variant == "base":
            return BaseSampler((num_inference_steps or released[0],), solver, self.scheduler)
        if self.variant == "mid":
            return PyramidSampler(steps, solver, self.zero_star, use_zero_init, zero_steps, self.scheduler)
        return DMDSampler(steps, is_amplify_first_chunk, self.scheduler)

    def _batch_size(self, prompt: Any, embeds: Tensor | None, schedule: Any) -> int:
        if sum(given is not None for given in (prompt, embeds, schedule)) != 1:
            raise HeliosError("prompt, prompt_embeds, prompt_schedule: give exactly one of them.")
        if embeds is not None:
            return embeds.shape[0]
        return 1 if prompt is None or isinstance(prompt, str) else len(prompt)

    def _text(self, prompt: Any, embeds: Tensor | None, name: str) -> Tensor:
        if embeds is None:
            return self.encode_prompt(prompt)
        expected = self.transformer.config.text_dim
        if embeds.ndim != 3 or embeds.shape[-1] != expected:
            raise HeliosError(f"{name}_embeds has shape {list(embeds.shape)}; it must be [B,512,{expected}].")
        return embeds.to(self.device, self.dtype)


def chunk_count(num_frames: int) -> int:
    """Chunks that hold ``num_frames``, at least one."""
    most = MOST_CHUNKS * CHUNK_FRAMES
    if not 1 <= num_frames <= most:
        raise HeliosError(
            f"num_frames={shortened(num_frames)} must be at least 1, at most {most}; a chunk is {CHUNK_FRAMES} frames."
        )
    return -(-num_frames // CHUNK_FRAMES)


def check_speed_options(offload: str | None, options: dict[str, bool], device: torch.device | str) -> None:
    """Refuses options that do not go together, before anything is read.

    Raises:
        HeliosError: streamed blocks cannot be compiled, recorded or narrowed, or the device cannot do what is asked.
    """
    chosen = [name for name, value in options.items() if value]
    if offload is not None and chosen:
        raise HeliosError(f"{chosen[0]}=True does not work with offload={offload!r}: blocks come and go; drop one.")
    if "cuda_graphs" in chosen and torch.device(device).type != "cuda":
        raise HeliosError(f"cuda_graphs=True needs a CUDA device, not device={str(device)!r}; leave it off.")
    if "fp8_matmul" in chosen:
        check_device(device)


def _as_output(video: Tensor, output_type: str) -> Any:
    """[B,3,F,H,W] in -1..1 -> the frames of one chunk as ``output_type`` wants them."""
    if output_type == "uint8":
        return torch.stack([frames_to_uint8(clip) for clip in video])
    unit = (video.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit.permute(0, 2, 1, 3, 4)
    return unit.permute(0, 2, 3, 4, 1).cpu().numpy()
