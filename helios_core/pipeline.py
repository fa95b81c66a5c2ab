"""HeliosPipeline: the headless library's front door, with the keyword names of diffusers' pipelines."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import open_transformer
from .checkpoint.load import without_data
from .checkpoint.options import LoadOptions
from .checkpoint.streaming import StreamedTransformer
from .checkpoint.text import load_text_encoder
from .checkpoint.vae import load_vae
from .errors import HeliosError
from .networks.parallel.crew import Crew, of_a_crew
from .networks.parallel.network import SharedNetwork, follow
from .networks.text import TextEncoder
from .networks.transformer import HeliosTransformer
from .networks.vae import WanVAE
from .samplers import ChunkSampler, EndFrame, OnStep, SchedulerConfig, sampler_of
from .take.anti_drift import AntiDrift
from .take.calls import with_keywords_of
from .take.chunk import Chunk
from .take.clip import OUTPUT_TYPES, HeliosOutput, check_output_type, finished, whole_clip
from .take.film import Film, check_film, chunk_count
from .take.fingerprint import fingerprint, folder_fingerprint
from .take.history import History, check_size
from .take.live import LiveFilm, live_film
from .take.prompts import DEFAULT_BLEND
from .take.reference import NoiseRange, encoded_frame, encoded_still, media_frames, media_history
from .take.seed_changes import SeedChanges, parse_seed_changes
from .take.source import TransformerChunks
from .take.take import Take
from .take.texts import Texts, schedule_of
from .take.video import Frames
from .variants import VARIANTS
from .video.frames import as_output


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
        crew: Crew | None = None,
    ):
        """``inexact`` names options under which the video is another one: they tell takes apart. Every process of
        ``crew`` has its own ``transformer``."""
        self.folder, self.inexact = folder, inexact
        self.transformer, self.vae, self.crew = transformer, vae, crew
        self.network = transformer if crew is None else SharedNetwork(transformer, crew)
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
        context_parallel: int = 1,
        cfg_parallel: bool = False,
        decode_parallel: bool = False,
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

        ``context_parallel`` processes, started by torchrun, make each film together: each computes a part of every
        forward. ``cfg_parallel`` takes twice as many, half of them for the negative prompt. ``decode_parallel`` takes
        one more, which decodes what :meth:`stream` and the command line show, while the others sample the next chunk.
        All of them call the same methods; the first alone gets the film.

        Raises:
            HeliosError: something is absent, foreign, incomplete or damaged, or an option does not fit the device.
        """
        crew = Crew.join(context_parallel, cfg_parallel, decode_parallel)
        with nullcontext() if crew is None else crew.all_or_none():
            device = torch.device(device) if crew is None else crew.team.device(device)
            decodes, processes = (True, 1) if crew is None else (crew.leads or crew.decodes, crew.sampling)
            options = LoadOptions(offload, attention, fp8_matmul, compile, cuda_graphs, processes)
            options.check(device)
            source = open_transformer(folder_or_repo_id, variant)
            folder = source.path if source.path.is_dir() else None
            vae, text_encoder = vae or folder, text_encoder or folder
            if vae is None:
                raise HeliosError(f"{source.path} is a transformer alone; give vae= a VAE file or a folder too.")

            def read_text_encoder() -> TextEncoder:
                if text_encoder is None:
                    raise HeliosError(f"{source.path} is a transformer alone; give text_encoder= or prompt_embeds.")
                return load_text_encoder(text_encoder, dtype, device, streamed=offload is not None)

            samples = crew is None or not crew.decodes
            transformer = options.load(source, dtype, device) if samples else without_data(source, dtype)
            if crew is not None:
                crew.divide(transformer)
            return cls(
                transformer=transformer,
                vae=load_vae(vae, torch.float32, device if decodes and offload is None else "cpu"),
                text_encoder=functools.cache(read_text_encoder),
                variant=source.variant,
                scheduler=SchedulerConfig.from_dict(source.scheduler),
                zero_star=source.is_cfg_zero_star,
                device=device,
                dtype=dtype,
                folder=folder,
                inexact=options.inexact,
                crew=crew,
            )

    def close(self) -> None:
        """Ends an offloaded pipeline's reader thread and frees its buffers until the next block; dropping it, too."""
        if isinstance(self.transformer, StreamedTransformer):
            self.transformer.stream.close()

    def velocity(self, *args: Any, **kwargs: Any) -> Tensor:
        """The transformer's prediction; arguments as in :meth:`HeliosTransformer.forward`."""
        return self.transformer(*args, **kwargs)

    def follow(self) -> None:
        """In all processes but the first: computes for it until the film that its :meth:`stream` makes has ended."""
        if self.crew is not None and not self.crew.leads:
            follow(self.transformer, self.crew, self.device, self._frames)

    @torch.no_grad()
    @of_a_crew
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_schedule: str | Sequence[tuple[int, str]] | None = None,
        blend: int = DEFAULT_BLEND,
        height: int = 384,
        width: int = 640,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        pyramid_num_inference_steps_list: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        solver: str = "unipc",
        use_zero_init: bool = True,
        zero_steps: int = 1,
        is_amplify_first_chunk: bool = True,
        is_skip_first_chunk: bool = False,
        image: Any = None,
        video: Any = None,
        image_noise_sigma_min: float = NoiseRange.low,
        image_noise_sigma_max: float = NoiseRange.high,
        generator: torch.Generator | None = None,
        seed_changes: str | SeedChanges = (),
        anti_drift: AntiDrift | None = None,
        end_image: Any = None,
        end_chunks: int = EndFrame.guided_chunks,
        end_strength: float = EndFrame.strength,
        on_step: Callable[[int], OnStep] | None = None,
        output_type: str | None = None,
        take: Take | None = None,
        directing: Callable[[Film], Film] | None = None,
    ) -> Iterator[Chunk]:
        """Yields a :class:`Chunk` as soon as it is finished; memory does not grow with the clip. Arguments are checked,
        and prompts encoded, by the call itself.

        Args:
            prompt: a string, or a list of strings for a batch.
            negative_prompt: used when ``guidance_scale`` is above 1.
            prompt_embeds, negative_prompt_embeds: [B,512,D] in place of the prompts.
            prompt_schedule: rows of (first chunk, prompt) in place of one prompt, the first at chunk 0, or as one text
                (``"0: a boat\n7: a storm"``); ``blend`` chunks mix each change.
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
            seed_changes: ``"7: 123"`` seeds the generator anew with 123 at chunk 7.
            anti_drift: noises the history of chunks that depart from the film so far; None: never, as the reference.
            end_image, end_chunks, end_strength: see :class:`.samplers.EndFrame`; the image is given as ``image`` is.
            on_step: ``on_step(chunk)`` returns the callback for that chunk's steps.
            output_type: ``uint8`` (the default), or ``latent`` for no frames.
            take: keeps finished chunks on disk, and samples none that is there.
            directing: gives another film of the same source and beginning to make, as :meth:`live` does.
        """
        defaults = VARIANTS[self.variant]
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        if not math.isfinite(scale):
            raise HeliosError(f"guidance_scale={scale} is not a finite number; released: {defaults.guidance_scale}.")
        if self.crew is not None:
            self.crew.check_guidance(scale)
        sampler = self.sampler(
            num_inference_steps,
            pyramid_num_inference_steps_list,
            solver,
            use_zero_init,
            zero_steps,
            is_amplify_first_chunk,
        )
        num_chunks = chunk_count(defaults.num_frames if num_frames is None else num_frames)
        changes = parse_seed_changes(seed_changes) if isinstance(seed_changes, str) else tuple(seed_changes)
        batch = Texts.batch_size(prompt, prompt_embeds, prompt_schedule)
        check_size(width, height, sampler.size_multiple)
        noise = NoiseRange(image_noise_sigma_min, image_noise_sigma_max)
        rows = schedule_of(prompt, prompt_schedule, blend)
        generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
        history = History.empty(width, height, batch)
        media = media_frames(image, video, width, height)
        if media is not None:
            history = media_history(media, video is None, batch, self.vae, self.device, generator, noise)
        end = media_frames(end_image, None, width, height, "end_image")
        if end is not None:
            still = encoded_still(end, self.vae, self.device)
            sampler = EndFrame(sampler, still, num_chunks - 1, end_chunks, end_strength)
        texts = Texts(self.encode_prompt, self._placed, self.transformer.config.text_dim)
        schedule = rows.encoded(lambda row: texts.embedded(row, prompt_embeds, "prompt"))
        negative = texts.negative(negative_prompt, negative_prompt_embeds, batch) if scale > 1 else None
        check_film(sampler, history, num_chunks)
        source = TransformerChunks(
            transformer=self.network,
            sampler=sampler,
            schedule=schedule,
            negative=negative,
            guidance_scale=scale,
            generator=generator,
            device=self.device,
            dtype=self.dtype,
            model=lambda: self.fingerprint("transformer", "scheduler"),
            on_step=on_step,
        )
        # The caller's generator may be in any state: the film continues it as it would a chunk's.
        begun = replace(history, seed=None, random_state=generator.get_state())
        start = replace(begun, skip_first_chunk=is_skip_first_chunk, anti_drift=anti_drift)
        film = Film(source, start, num_chunks, None, changes)
        chunks = (film if directing is None else directing(film)).chunks(take)
        return finished(chunks, generator, self.device, None if output_type == "latent" else self.frames)

    @torch.no_grad()
    @with_keywords_of(stream)
    def __call__(self, *args: Any, output_type: str | None = None, **keywords: Any) -> HeliosOutput:
        """Generates a whole clip in memory; arguments as in :meth:`stream`.

        ``output_type``: ``np`` (the default; float32 array [B,F,H,W,3] in 0..1), ``pt`` (float tensor [B,F,3,H,W] in
        0..1), ``uint8`` (tensor [B,F,H,W,3]) or ``latent`` (no decoding). F is 33 per chunk.
        """
        output_type = output_type or OUTPUT_TYPES[0]
        check_output_type(output_type)
        return whole_clip(self.stream(*args, output_type="latent", **keywords), self.decode, output_type)

    def live(self, text: str, output: str | Path, **keywords: Any) -> LiveFilm:
        """A film that is directed while it is made; see :func:`~helios_core.take.live.live_film`."""
        if self.crew is not None:
            raise HeliosError("a live film is made by one process; load without context_, cfg_ and decode_parallel.")
        return live_film(self, text, output, **keywords)

    def fingerprint(self, *parts: str) -> str:
        """Identity of the weights and settings in subfolders of the released folder.

        Raises:
            HeliosError: the pipeline was not loaded from a folder.
        """
        if self.folder is None:
            raise HeliosError("take needs a pipeline of from_pretrained, whose folder tells models apart.")
        return fingerprint([folder_fingerprint(self.folder / part) for part in parts], self.dtype, self.inexact)

    def sampler(self, *args: Any, **keywords: Any) -> ChunkSampler:
        """The variant's sampler, by the reference's keywords."""
        return sampler_of(self.variant, self.scheduler, self.zero_star, *args, **keywords)

    def steps_per_chunk(self, num_frames: int, **sampling: Any) -> list[int]:
        """Steps of every chunk of a clip, for a progress bar; sampler options as in :meth:`stream`."""
        sampler = self.sampler(**sampling)
        return [sampler.total_steps(chunk) for chunk in range(chunk_count(num_frames))]

    def decode(self, latents: Tensor) -> Tensor:
        """One chunk's latents [B,16,9,h,w] (normalised) -> frames [B,3,33,H,W] in -1..1."""
        is_offloaded = isinstance(self.transformer, StreamedTransformer)
        if is_offloaded:
            self.close()  # its buffers are the room that the VAE needs
        with self.vae.at_work(self.device):
            # Encoding keeps its larger passes: it decides latents, whose bits must not depend on memory.
            return self.vae.decode(self.vae.denormalise(latents.to(self.vae.dtype)), 1 if is_offloaded else None)

    def frames(self, latents: Tensor) -> Frames:
        """One chunk's latents as for :meth:`decode` -> uint8 frames [33B,H,W,3], later if another process decodes."""
        decoder = None if self.crew is None else self.crew.decoder
        return self._frames(latents) if decoder is None else decoder.frames(latents)

    @torch.no_grad()
    def _frames(self, latents: Tensor) -> Tensor:
        return as_output(self.decode(latents.to(self.device)), "uint8").flatten(0, 1)

    def encode_anchor(self, picture: Any, width: int, height: int) -> Tensor:
        """A picture, given as ``image`` of :meth:`stream`, as an anchor [1,16,1,H/8,W/8], normalised model space."""
        return encoded_frame(media_frames(picture, None, width, height), self.vae, self.device)

    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor:
        """Prompts -> text embeddings [B,512,D] in the pipeline's type."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        return self._placed(self._text_encoder().encode(prompts))

    def _placed(self, embeddings: Tensor) -> Tensor:
        return embeddings.to(self.device, self.dtype)
