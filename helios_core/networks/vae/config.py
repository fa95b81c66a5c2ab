"""Configuration of the Wan 2.1 VAE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import HeliosError, shortened
from ..settings import check_range, typed

# Statistics of the released Wan 2.1 latent space, one entry per latent channel.
_WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_WAN21_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

# Options of AutoencoderKLWan that Wan 2.1 leaves at these values; anything else is another network.
_WAN21_ONLY: dict[str, tuple[Any, ...]] = {
    "attn_scales": ([],),
    "decoder_base_dim": (None,),
    "is_residual": (False,),
    "patch_size": (None, 1),
    "in_channels": (3,),
    "out_channels": (3,),
}


@dataclass(frozen=True)
class VAEConfig:
    """Shape of a Wan 2.1 VAE; the defaults are the released one."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = _WAN21_MEAN
    latents_std: tuple[float, ...] = _WAN21_STD

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise HeliosError(
                f"The VAE config's temperal_downsample has {len(self.temporal_downsample)} entries: "
                f"give one fewer than dim_mult has ({len(self.dim_mult) - 1})."
            )
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) != self.z_dim:
                raise HeliosError(
                    f"The VAE config's {name} has {len(values)} entries: give one per latent channel "
                    f"(z_dim {self.z_dim})."
                )

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], source: str = "The VAE config") -> "VAEConfig":
        """Read AutoencoderKLWan's config.json, called `source` in errors. HeliosError where it is no Wan 2.1 VAE."""
        for option, accepted in _WAN21_ONLY.items():
            value = config.get(option, accepted[0])
            if option == "decoder_base_dim" and value == config.get("base_dim", cls.base_dim):
                continue
            if value not in accepted:
                raise HeliosError(
                    f"{source} has {option}={shortened(value)}, which Wan 2.1 does not use: "
                    "choose the VAE folder of a Helios release."
                )
        result = typed(cls, config, source, {"temporal_downsample": "temperal_downsample"})
        result.check(source)
        return result

    def check(self, source: str) -> None:
        """HeliosError for sizes that no VAE has, and statistics that latents cannot be divided by."""
        check_range(source, "base_dim", self.base_dim, 1, 1024)
        check_range(source, "num_res_blocks", self.num_res_blocks, 1, 16)
        check_range(source, "z_dim", self.z_dim, 1, 64)
        check_range(source, "the length of dim_mult", len(self.dim_mult), 1, 8)
        for multiple in self.dim_mult:
            check_range(source, "dim_mult", multiple, 1, 64)
        for value in self.latents_mean:
            check_range(source, "latents_mean", value, -1e6, 1e6)
        for value in self.latents_std:
            check_range(source, "latents_std", value, 1e-6, 1e6)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent along height and width (8)."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent after the first, which covers one frame (4)."""
        return 2 ** sum(self.temporal_downsample)
