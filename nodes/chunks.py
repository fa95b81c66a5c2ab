"""Chunk nodes: one chunk, a chain of chunks, and their frames."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..helios_core.errors import HeliosError
from ..helios_core.take.film import MOST_CHUNKS, Film
from ..helios_core.take.seed_changes import parse_seed_changes
from ..helios_core.take.take import Take, check_name
from ..helios_core.variants import CHUNK_LATENT_FRAMES, LATENT_CHANNELS
from .adapters.chunk_source import NodeChunks
from .adapters.graph_checks import check_node
from .adapters.sockets import Least
from .adapters.takes import (
    check_seed_changes,
    manifest_settings,
    output_store,
    seed_changes_input,
    take_input,
    warn_of_late_changes,
)
from .history import HistoryType, seed_input
from .live.events import TakeFeed
from .live.report import FilmReport


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


def num_chunks_input(
    tooltip: str = "Length of the video: each chunk is 33 frames, 1.4 seconds at 24 fps; 44 make a minute.",
) -> io.Int.Input:
    return io.Int.Input(
        "num_chunks",
        default=3,
        min=1,
        max=MOST_CHUNKS,
        tooltip=tooltip,
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
    def validate_inputs(cls) -> bool:
        return check_node()

    @classmethod
    def execute(cls, model, positive, negative, cfg, sampler, history, seed) -> io.NodeOutput:
        source = NodeChunks(model, positive, negative, cfg, sampler, history, 1)
        FilmReport(source, history)
        chunk = next(Film(source, history, 1, seed).chunks())
        return io.NodeOutput({"samples": chunk.latents}, chunk.history)


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
        # The only input that is named: core repeats a message once for every one.
        return check_node() and check_seed_changes(seed_changes)

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
        source = NodeChunks(model, positive, negative, cfg, sampler, history, num_chunks)
        warn_of_late_changes(changes, history, num_chunks)
        report = FilmReport(source, history)
        film = Film(source, history, num_chunks, seed, changes)
        latents = []
        with contextlib.ExitStack() as entered:
            report.feed = entered.enter_context(TakeFeed(report.progress, history, seed, changes, take, cls.hidden))
            record = None
            if take:
                settings = manifest_settings(history, seed, num_chunks, cls.hidden.prompt, changes)
                record = entered.enter_context(Take(output_store(), take, settings | report.feed.remembered()))
            for chunk in film.chunks(record):
                comfy.model_management.throw_exception_if_processing_interrupted()
                report.finished(chunk)
                latents.append(chunk.latents.cpu())
        samples = torch.cat(latents, dim=2).to(comfy.model_management.intermediate_device())
        return io.NodeOutput({"samples": samples}, chunk.history)


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
