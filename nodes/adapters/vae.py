"""The Wan 2.1 VAE of a released folder or a single file as ComfyUI's own VAE type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...helios_core.checkpoint.folder import weight_files
from ...helios_core.checkpoint.header import read_header
from ...helios_core.checkpoint.load import check_state_dict
from ...helios_core.checkpoint.vae_names import native_vae
from ...helios_core.networks.vae import VAEConfig, WanVAE

# Of the device's memory, for one pass: a larger one would push the transformer out. On a CPU passes of 1, 3 and 9
# latents take 10.9, 10.9 and 12.3 s (base_dim 32, 320x192); not measured on a GPU.
PASS_SHARE = 1 / 8


class VideoVAE(WanVAE):
    """Our VAE behind the calls that core makes of a Wan 2.1 network; core's own works latent by latent.

    ``budget`` bytes of working memory decide how many latents a pass takes.
    """

    device = None  # core's patcher writes where it put the weights

    def __init__(self, budget: int, **arguments: Any):
        super().__init__(**arguments)
        self.budget = budget

    def encode(self, video: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """[B,3,F,H,W] in -1..1 -> mean of the latents [B,16,n,H/8,W/8]; frames past the last 4k+1 are dropped."""
        frames = 1 + (video.shape[2] - 1) // self.config.temporal_factor * self.config.temporal_factor
        batch, height, width = video.shape[0], video.shape[3] // 8, video.shape[4] // 8
        return super().encode(video[:, :, :frames], self.pass_size(batch, height, width, self.budget))[0]

    def decode(self, latents: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """[B,16,n,h,w] -> frames [B,3,4n-3,8h,8w] in -1..1."""
        batch, _, _, height, width = latents.shape
        return super().decode(latents, self.pass_size(batch, height, width, self.budget))

    def memory_used(self, latents: torch.Size | tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes that core should keep free for latents of this shape."""
        batch, _, count, height, width = latents
        size = min(count, self.pass_size(batch, height, width, self.budget))
        return size * self.latent_bytes(batch, height, width, dtype.itemsize)


def load_vae(path: str | Path) -> comfy.sd.VAE:
    """Core's VAE around our network, with the weights of ``path``/vae, or of the file ``path`` in either naming.

    Raises:
        HeliosError: a file is missing, damaged or foreign.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for file in [path] if path.is_file() else weight_files(path / "vae"):
        read_header(file)
        tensors.update(comfy.utils.load_torch_file(str(file)))
    state = native_vae(tensors, path)
    width = max(1, *state["encoder.conv1.weight"].shape[:1])
    # Core would fail in torch's words over a tensor of another shape.
    check_state_dict(WanVAE(VAEConfig(base_dim=width), device="meta"), state, path, "Wan 2.1 VAE")
    vae = comfy.sd.VAE(sd=state)
    vae.throw_exception_if_invalid()
    use_own_network(vae)
    vae.patcher.cached_patcher_init = (_reload_patcher, (path,))
    return vae


def use_own_network(vae: comfy.sd.VAE) -> None:
    """Replaces core's Wan 2.1 network by ours with the same weights, types and devices."""
    # With dynamic VRAM core leaves the file's type to be cast on use, which our layers do not do.
    weights = {key: tensor.to(vae.vae_dtype) for key, tensor in vae.first_stage_model.state_dict().items()}
    config = VAEConfig(base_dim=weights["encoder.conv1.weight"].shape[0])
    budget = int(comfy.model_management.get_total_memory(vae.device) * PASS_SHARE)
    network = VideoVAE(budget, config=config, device="meta")
    network.load_state_dict(weights, assign=True)
    vae.first_stage_model = network.requires_grad_(False).eval()
    comfy.model_management.archive_model_dtypes(network)
    # Not the dynamic patcher, which would want core's layers; a Wan VAE is 0.25 GB.
    vae.patcher = comfy.model_patcher.ModelPatcher(
        network, load_device=vae.patcher.load_device, offload_device=vae.patcher.offload_device
    )
    vae.memory_used_decode = network.memory_used
    vae.memory_used_encode = lambda shape, dtype: network.memory_used(
        (shape[0], config.z_dim, 1 + (shape[2] - 1) // 4, shape[3] // 8, shape[4] // 8), dtype
    )


def _reload_patcher(path: Path, **_: Any) -> Any:
    return load_vae(path).patcher
