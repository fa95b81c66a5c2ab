"""Chunk nodes: one chunk, a chain of chunks, and their frames."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import comfy.samplers
import latent_preview
import torch
from comfy.utils import PROGRESS_BAR_ENABLED, ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..helios_core.errors import HeliosError
from ..helios_core.samplers import draw_noise
from ..helios_core.take.chunks import MOST_CHUNKS, check_chain
from ..helios_core.take.history import History
from ..helios_core.take.progress import RenderProgress
from ..helios_core.take.seed_changes import SeedChanges, parse_seed_changes, seed_at
from ..helios_core.take.take import Take, check_name
from ..helios_core.variants import CHUNK_LATENT_FRAMES, LATENT_CHANNELS
from .adapters.model import HISTORY_KEY
from .adapters.prepared import PREPARED_KEY, PreparedInputs
from .adapters.sockets import Least, check_text
from .adapters.takes import Chain, manifest_settings, output_store, seed_changes_input, take_input
from .history import HistoryType, seed_input
from .live.events import TakeFeed, watched
from .live.thumbnails import latent_thumbnail
from .prompts import conditioning_at, schedule_of
from .samplers import HeliosSampler, check_model

FILM_FPS = 24.0


class ChainRun:
    """Samples the chunks of one node: one guider, one ``guider.sample`` per chunk.

    ``fps`` is the film's frame rate. A node that pages watch sets ``feed`` before the first chunk.
    """

    def __init__(
        self,
        model: Any,
        positive: list,
        negative: list,
        cfg: float,
        sampler: Any,
        history: History,
        num_chunks: int,
        fps: float = FILM_FPS,
    ):
        if not isinstance(sampler, HeliosSampler):
            raise HeliosError(
                f"sampler is a {type(sampler).__name__}, not a Helios sampler; connect a Helios sampler node."
            )
        check_model(model.model, model.get_model_object("model_sampling"), sampler.settings)
        check_chain(sampler.settings, history, num_chunks)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_conditioning(name, conditioning)
        self.sampler, self.model = sampler, model
        self.positive, self.negative = positive, negative
        self.in_force: tuple[list, list] | None = None
        self.guider = comfy.samplers.CFGGuider(model.clone())
        # Guidance runs only above 1 (DESIGN section 6.7); core would also guide below.
        self.guider.set_cfg(max(cfg, 1.0))
        steps = [sampler.settings.total_steps(history.chunk + i) for i in range(num_chunks)]
        self.bar = ProgressBar(sum(steps))
        self.progress = RenderProgress(steps, fps)
        self.feed: TakeFeed | None = None
        self._chunk = history.chunk
        self._latent_height = history.latents.shape[-2]
        self._finest = int(math.log2(sampler.settings.size_multiple)) - 4
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def sample(self, history: History, seed: int) -> tuple[Tensor, History]:
        """The next chunk's latents in VAE space [B,16,9,H/8,W/8], and the history after it."""
        self._set_conditions(history)
        self._chunk = history.chunk
        generator = history.generator(seed)
        noise = draw_noise(history.chunk_shape, generator)
        sampler = self.sampler.with_generator(generator)
        steps = sampler.settings.total_steps(history.chunk)
        samples = self.guider.sample(
            noise,
            torch.zeros_like(noise),
            sampler,
            torch.linspace(1.0, 0.0, steps + 1),
            callback=self._report,
            disable_pbar=not PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        latents = sampler.chunk_latents.to("cpu")
        return samples.to(comfy.model_management.intermediate_device()), history.after(latents, generator, seed)

    def _set_conditions(self, history: History) -> None:
        """Sets the prompts and the history in force.

        While prompts stay, so do the ids that core gave the conditions, and with them the prepared text.
        """
        prompts = (conditioning_at(self.positive, history.chunk), conditioning_at(self.negative, history.chunk))
        options = self.guider.model_options["transformer_options"]
        if self.in_force is None or any(a is not b for a, b in zip(prompts, self.in_force, strict=True)):
            self.in_force = prompts
            options[PREPARED_KEY] = PreparedInputs()
            self.guider.set_conds(*prompts)
        options[PREPARED_KEY].next_chunk()
        for conds in self.guider.original_conds.values():
            for cond in conds:
                cond[HISTORY_KEY] = history

    def _report(self, step: int, x0: Tensor, _x: Tensor, total: int) -> None:
        preview = None
        if self.previewer is not None:
            preview = self.previewer.decode_latent_to_preview_image("JPEG", x0)
        self.progress.step()
        self.bar.update_absolute(self.progress.position, None, preview)
        stage = self._finest - round(math.log2(self._latent_height / x0.shape[-2]))
        self.stepped(stage, step + 1, total)

    def stepped(self, stage: int, step: int, total: int) -> None:
        """Tells that ``step`` of ``total``, counted from 1 over all stages of the chunk, is done."""
        if self.feed is not None:
            self.feed.sampling(self._chunk, stage, step, total)

    def finished(self, chunk: int, latents: Tensor, reused: bool) -> None:
        """Counts and tells of a chunk that stays undecoded; its thumbnail comes from ``latents``, in VAE space."""
        if reused:
            self.progress.reuse()
        self.progress.chunk()
        if self.feed is not None:
            thumbnail = None
            if watched():
                thumbnail = latent_thumbnail(latents, self.model.model.latent_format, self.previewer, self.progress.fps)
            self.feed.finished(chunk, reused, thumbnail)


def check_conditioning(name: str, conditioning: list) -> None:
    """Refuses what a pyramid of sizes cannot follow."""
    if not conditioning:
        raise HeliosError(f"{name} is empty; connect a CLIP Text Encode node.")
    for _, options in (entry for _, row in schedule_of(conditioning).rows for entry in row):
        used = [key for key in ("area", "mask", "control", "gligen") if key in options]
        if used:
            raise HeliosError(f"{name} uses {used[0]}, which Helios does not support; remove that conditioning node.")


def chunk_inputs() -> list[io.Input]:
    """The inputs that Sample Chunk and Chunk Chain share."""
    return [
        io.Model.Input("model", tooltip="A Helios model; LoRA and compile nodes may come in between."),
        io.Conditioning.Input("positive", tooltip="What the video should show: a prompt, or a Helios Prompt Schedule."),
        io.Conditioning.Input("negative", tooltip="What it should not show; used where cfg is above 1."),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=Least(0.0),
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance scale. Released: 1 for Distilled (no guidance, twice as fast), 5 for Base and Mid.",
        ),
        io.Sampler.Input("sampler", tooltip="The Helios sampler node of the model's variant."),
        HistoryType.Input("history", tooltip="What came before: an empty history, or the last chunk's."),
        seed_input(
            "The same seed gives the same video. Later chunks with the first one's seed continue its "
            "random numbers; another seed rolls the video again from that chunk on."
        ),
    ]


def num_chunks_input() -> io.Int.Input:
    return io.Int.Input(
        "num_chunks",
        default=3,
        min=1,
        max=MOST_CHUNKS,
        tooltip="Length of the video: each chunk is 33 frames, 1.4 seconds at 24 fps; 44 make a minute.",
    )


def chunk_outputs(latent_tooltip: str) -> list[io.Output]:
    return [
        io.Latent.Output(display_name="latent", tooltip=latent_tooltip),
        HistoryType.Output(display_name="history", tooltip="What the next chunk continues from."),
    ]


class HeliosSampleChunk(io.ComfyNode):
    """Samples the next chunk: 33 frames that follow the history."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosSampleChunk",
            display_name="Helios Sample Chunk",
            category="Helios/sampling",
            description="Samples the next chunk, 33 frames that follow the history. Chain several by their history "
            "to change the prompt in the middle of a video.",
            search_aliases=["helios ksampler", "helios next chunk", "helios extend"],
            inputs=chunk_inputs(),
            outputs=chunk_outputs("This chunk's 9 latent frames. Decode it with Helios Decode or VAE Decode."),
        )

    @classmethod
    def execute(cls, model, positive, negative, cfg, sampler, history, seed) -> io.NodeOutput:
        run = ChainRun(model, positive, negative, cfg, sampler, history, 1)
        samples, history = run.sample(history, seed)
        return io.NodeOutput({"samples": samples}, history)


class HeliosChunkChain(io.ComfyNode):
    """Samples several chunks one after the other, with the history passed on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosChunkChain",
            display_name="Helios Chunk Chain",
            category="Helios/sampling",
            description="Samples several chunks of 33 frames one after the other: the same video as that many "
            "Sample Chunk nodes in a row.",
            search_aliases=["helios long video", "helios sampler", "helios text to video"],
            inputs=[
                *chunk_inputs(),
                num_chunks_input(),
                take_input(),
                seed_changes_input(),
            ],
            outputs=chunk_outputs("All chunks, 9 latent frames each. Decode them with Helios Decode."),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, seed_changes: str | None = None) -> bool | str:
        # The take's name waits for execute: core repeats the message once for every input that is named here.
        try:
            check_text("seed_changes", seed_changes or "")
            parse_seed_changes(seed_changes or "")
        except HeliosError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        cfg,
        sampler,
        history,
        seed,
        num_chunks,
        take: str = "",
        seed_changes: str = "",
    ) -> io.NodeOutput:
        changes = parse_seed_changes(seed_changes)
        if take:
            check_name(take)
        run = ChainRun(model, positive, negative, cfg, sampler, history, num_chunks)
        with TakeFeed(run.progress, history, seed, changes, take, cls.hidden) as run.feed:
            if take:
                return cls._stored(run, history, seed, changes, take)
            chunks = []
            for _ in range(num_chunks):
                chunk = history.chunk
                samples, history = run.sample(history, seed_at(changes, chunk, seed))
                run.finished(chunk, samples, reused=False)
                chunks.append(samples)
        return io.NodeOutput({"samples": torch.cat(chunks, dim=2)}, history)

    @classmethod
    def _stored(cls, run: ChainRun, history: History, seed: int, changes: SeedChanges, name: str) -> io.NodeOutput:
        """The same with every finished chunk kept on disk, and those that are there already taken from it."""
        num_chunks = len(run.progress.steps_per_chunk)
        chain = Chain(run, history, seed, num_chunks, changes)
        settings = manifest_settings(history, seed, num_chunks, cls.hidden.prompt, changes)
        latents = []
        with Take(output_store(), name, settings) as take:
            for found in chain.chunks(take):
                run.finished(found.chunk.history.chunk - 1, found.chunk.latents, found.reused)
                latents.append(found.chunk.latents.cpu())
        run.bar.update_absolute(run.progress.position)
        samples = torch.cat(latents, dim=2)
        return io.NodeOutput({"samples": samples.to(comfy.model_management.intermediate_device())}, chain.history)


class HeliosDecode(io.ComfyNode):
    """Decodes chunks one at a time: each is a causal sequence of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosDecode",
            display_name="Helios Decode",
            category="Helios/latent",
            description="Decodes a chain chunk by chunk, 9 latent frames to 33 frames. VAE Decode would run across "
            "chunk boundaries and lose frames there.",
            search_aliases=["helios vae decode", "helios frames"],
            inputs=[
                io.Latent.Input("latent", tooltip="The latent of Sample Chunk or Chunk Chain."),
                io.Vae.Input("vae", tooltip="Helios VAE Loader, or core's Load VAE with the Wan 2.1 VAE."),
            ],
            outputs=[io.Image.Output(tooltip="33 frames per chunk. Connect it to Create Video.")],
        )

    @classmethod
    def execute(cls, latent: dict, vae: Any) -> io.NodeOutput:
        samples = latent["samples"]
        check_chain_latents(samples)
        batch, _, frames, _, _ = samples.shape
        chunks = frames // CHUNK_LATENT_FRAMES
        bar = ProgressBar(batch * chunks)
        decoded = []
        for clip in samples:
            for chunk in clip.split(CHUNK_LATENT_FRAMES, dim=1):
                comfy.model_management.throw_exception_if_processing_interrupted()
                decoded.append(vae.decode(chunk.unsqueeze(0)).flatten(0, -4))
                bar.update(1)
        return io.NodeOutput(torch.cat(decoded))


def check_chain_latents(samples: Tensor) -> None:
    """Refuses latents that are not whole chunks."""
    fits = samples.ndim == 5 and samples.shape[1] == LATENT_CHANNELS and samples.shape[2] % CHUNK_LATENT_FRAMES == 0
    if not fits or not math.prod(samples.shape):
        raise HeliosError(
            f"latent has shape {list(samples.shape)}; connect the latent of Helios Sample Chunk or Chunk Chain, "
            "[B,16,9n,H/8,W/8]."
        )
