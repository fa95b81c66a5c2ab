"""Histories that begin from an image or a clip."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import comfy.latent_formats
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..helios_core.errors import HeliosError, reason
from ..helios_core.take.history import History, check_size
from ..helios_core.take.reference import NoiseRange, image_history, video_history
from ..helios_core.variants import FPS, PIXELS_PER_TOKEN
from ..helios_core.video.frames import at_rate
from .adapters.graph_checks import check_node
from .adapters.sockets import Least
from .history import DEFAULT_HEIGHT, DEFAULT_WIDTH, HistoryType, seed_input, size_inputs

SIGMA_MIN, SIGMA_MAX = 0.111, 0.135  # released

log = logging.getLogger(__name__)


class Encoder:
    """Core's VAE as ``helios_core`` wants it: mean and standard deviation, statistics of the Wan latent space.

    Core's Wan VAE returns the mean alone; the deviation, which the reference samples with, is read where the
    network computes both.
    """

    def __init__(self, vae: Any):
        self._vae = vae
        self._moments = getattr(vae.first_stage_model, "conv1", None)
        if self._moments is None or vae.latent_channels != 16:
            raise HeliosError("vae is not a Wan 2.1 VAE; use Helios VAE Loader, or Load VAE with the Wan 2.1 VAE.")

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[B,3,F,H,W] in -1..1 -> mean and standard deviation [B,16,n,H/8,W/8], float32 on the CPU."""
        clips = [self._encode(clip) for clip in frames]
        means, stds = zip(*clips, strict=True)
        return torch.cat(means), torch.cat(stds)

    def _encode(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self._moments.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            mean = self._vae.encode((clip.permute(1, 2, 3, 0) + 1) / 2).float().cpu()
        finally:
            hook.remove()
        log_variance = seen[-1].chunk(2, dim=1)[1].float().cpu()
        if log_variance.shape != mean.shape:
            log.warning("The VAE ran in tiles for lack of memory: its latents are not sampled but taken at their mean.")
            return mean, torch.zeros_like(mean)
        return mean, (0.5 * log_variance.clamp(-30, 20)).exp()


def normalise(latents: Tensor) -> Tensor:
    """VAE space -> model space, as core does for every Wan model."""
    return comfy.latent_formats.Wan21().process_in(latents)


def fitted(images: Tensor, width: int, height: int) -> Tensor:
    """IMAGE [F,H,W,C] -> [1,3,F,height,width] in -1..1, scaled bilinearly and cropped at the centre as core does."""
    check_size(width, height, PIXELS_PER_TOKEN)
    frames = comfy.utils.common_upscale(images[..., :3].movedim(-1, 1), width, height, "bilinear", "center")
    return frames.movedim(0, 1).unsqueeze(0) * 2 - 1


def encoded_anchor(vae: Any, image: Tensor, history: History) -> Tensor:
    """The first of IMAGE [F,H,W,C] as an anchor [1,16,1,h,w] for ``history``, normalised model space."""
    mean, _ = Encoder(vae)(fitted(image[:1], history.width, history.height)[:, :, :1])
    return normalise(mean)


def noise_inputs() -> list[io.Input]:
    common = "The history is mixed with noise of a strength drawn between the two; released 0.111 to 0.135."
    return [
        io.Float.Input(
            "noise_sigma_min",
            default=SIGMA_MIN,
            optional=True,
            min=Least(0.0),
            max=1.0,
            step=0.001,
            round=0.0001,
            advanced=True,
            tooltip=f"{common} More noise lets the video move away from a still start.",
        ),
        io.Float.Input(
            "noise_sigma_max",
            default=SIGMA_MAX,
            optional=True,
            min=Least(0.0),
            max=1.0,
            step=0.001,
            round=0.0001,
            advanced=True,
            tooltip=f"{common} Less keeps closer to the input.",
        ),
        seed_input(
            "Draws the noise here, and begins the video's random numbers: give the chunk nodes the same seed "
            "to continue them, as the reference does.",
            optional=True,
        ),
        io.Boolean.Input(
            "skip_first_chunk",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Anchors the video to its second chunk instead of the input; for first chunks that stand still.",
        ),
    ]


class HeliosImageHistory(io.ComfyNode):
    """Begins an image-to-video take: the image is what the video starts from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosImageHistory",
            display_name="Helios Image History (Image to Video)",
            category="Helios/history",
            description="Begins an image-to-video take: the image is the video's anchor and what its first chunk "
            "follows. It is scaled to cover the size and cropped at the centre.",
            search_aliases=["helios i2v", "helios start image"],
            inputs=[
                io.Vae.Input("vae", tooltip="Helios VAE Loader, or core's Load VAE with the Wan 2.1 VAE."),
                io.Image.Input("image", tooltip="The first frame. Of several images the first is used."),
                *size_inputs(),
                *noise_inputs(),
            ],
            outputs=[HistoryType.Output(display_name="history", tooltip="Connect it to Sample Chunk or Chunk Chain.")],
        )

    @classmethod
    def validate_inputs(cls) -> bool:
        return check_node()

    @classmethod
    def execute(
        cls,
        vae,
        image,
        width=DEFAULT_WIDTH,
        height=DEFAULT_HEIGHT,
        noise_sigma_min=SIGMA_MIN,
        noise_sigma_max=SIGMA_MAX,
        seed=0,
        skip_first_chunk=False,
    ) -> io.NodeOutput:
        noise, encoder = NoiseRange(noise_sigma_min, noise_sigma_max), Encoder(vae)
        frame = fitted(image[:1], width, height)[:, :, 0]
        generator = torch.Generator("cpu").manual_seed(seed)
        history = image_history(frame, encoder, normalise, generator, seed, noise)
        return io.NodeOutput(replace(history, skip_first_chunk=skip_first_chunk))


class HeliosVideoHistory(io.ComfyNode):
    """Begins a video-to-video take: the new video continues the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosVideoHistory",
            display_name="Helios Video History (Video to Video)",
            category="Helios/history",
            description="Begins a video-to-video take: the new video continues the clip from its end. Whole chunks of "
            "33 frames are taken from the end; frames are scaled to cover the size and cropped at the centre.",
            search_aliases=["helios v2v", "helios continue video", "helios extend video"],
            inputs=[
                io.Vae.Input("vae", tooltip="Helios VAE Loader, or core's Load VAE with the Wan 2.1 VAE."),
                io.MultiType.Input(
                    "video",
                    [io.Video, io.Image],
                    tooltip="The clip to continue, at least 33 frames: a VIDEO (Load Video) or its frames as IMAGE. "
                    "A VIDEO of another rate than Helios's 24 fps is converted.",
                ),
                *size_inputs(),
                *noise_inputs(),
            ],
            outputs=[
                HistoryType.Output(display_name="history", tooltip="Connect it to Sample Chunk or Chunk Chain."),
                io.Image.Output(
                    display_name="frames",
                    tooltip="The clip as Helios saw it, scaled and cropped: put it in front of the result to get one "
                    "take.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls) -> bool:
        return check_node()

    @classmethod
    def execute(
        cls,
        vae,
        video,
        width=DEFAULT_WIDTH,
        height=DEFAULT_HEIGHT,
        noise_sigma_min=SIGMA_MIN,
        noise_sigma_max=SIGMA_MAX,
        seed=0,
        skip_first_chunk=False,
    ) -> io.NodeOutput:
        noise, encoder = NoiseRange(noise_sigma_min, noise_sigma_max), Encoder(vae)
        images = video if isinstance(video, Tensor) else _frames(video)
        frames = fitted(images, width, height)
        generator = torch.Generator("cpu").manual_seed(seed)
        history = video_history(frames, encoder, normalise, generator, seed, noise)
        shown = (frames[0].permute(1, 2, 3, 0) + 1) / 2
        return io.NodeOutput(replace(history, skip_first_chunk=skip_first_chunk), shown)


def _frames(video: Any) -> Tensor:
    """The frames of a VIDEO, which core reads only now, at the rate that Helios works at."""
    try:
        content = video.get_components()
        images, rate = content.images, float(content.frame_rate)
    # PyAV and core fail in whatever a damaged file meets first.
    except Exception as error:
        raise HeliosError(f"video cannot be read ({reason(error)}); give a whole video file.") from error
    if images.ndim != 4 or not images.shape[0]:
        raise HeliosError("video has no frames; give a whole video file of at least 33 frames.")
    shown = at_rate(len(images), rate)
    if len(shown) != len(images):
        log.info("The clip's %d frames at %g fps are taken as %d at %g.", len(images), rate, len(shown), FPS)
    return images[shown]
