"""What a transformer is built from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import HeliosError, shortened
from ..settings import check_range, typed

# Far above any Helios: beyond these a file is damaged, and building the model would take minutes.
LARGEST_SIZE, MOST_LAYERS = 2**20, 1000
_SIZES = ("num_attention_heads", "attention_head_dim", "text_dim", "freq_dim", "ffn_dim")


@dataclass(frozen=True)
class TransformerConfig:
    """The released transformer/config.json; the defaults are the 14B model."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    added_kv_proj_dim: int | None = None
    rope_dim: tuple[int, int, int] = (44, 42, 42)
    rope_theta: float = 10000.0
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    has_multi_term_memory_patch: bool = True
    is_amplify_history: bool = False
    history_scale_mode: str = "per_head"

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: dict[str, Any], source: str = "transformer/config.json") -> TransformerConfig:
        """Reads a config.json; keys that start with ``_`` are diffusers' own and are skipped.

        Raises:
            HeliosError: an unknown setting, or a value that no Helios model has; it names ``source``.
        """
        names = {f.name for f in fields(cls)}
        unknown = sorted(k for k in config if not k.startswith("_") and k not in names)
        if unknown:
            raise HeliosError(
                f"{source} has unknown settings {shortened(unknown)}; use the released Helios config.json."
            )
        result = typed(cls, config, source)
        result.check(source)
        return result

    def check(self, source: str = "transformer config") -> None:
        """Refuses what no released model uses rather than computing something else silently."""
        for name in _SIZES:
            check_range(source, name, getattr(self, name), 1, LARGEST_SIZE)
        check_range(source, "num_layers", self.num_layers, 1, MOST_LAYERS)
        check_range(source, "eps", self.eps, 1e-12, 0.1)
        check_range(source, "rope_theta", self.rope_theta, 2, 1e9)
        if (tuple(self.patch_size), self.in_channels, self.out_channels) != ((1, 2, 2), 16, 16):
            raise HeliosError(
                f"{source} has patch_size={list(self.patch_size)}, in_channels={self.in_channels}, out_channels="
                f"{self.out_channels}; Helios has [1, 2, 2], 16 and 16: use the released file."
            )
        if self.qk_norm != "rms_norm_across_heads" or self.added_kv_proj_dim is not None:
            raise HeliosError(
                f"{source} has qk_norm={shortened(self.qk_norm)}, added_kv_proj_dim={self.added_kv_proj_dim}; "
                "Helios has 'rms_norm_across_heads' and null: use the released file."
            )
        if sum(self.rope_dim) != self.attention_head_dim or any(part < 2 or part % 2 for part in self.rope_dim):
            raise HeliosError(
                f"{source} has rope_dim={list(self.rope_dim)}, which must be even numbers that sum to "
                f"attention_head_dim={self.attention_head_dim}; use the released config.json."
            )
        if self.history_scale_mode not in ("per_head", "scalar"):
            raise HeliosError(
                f"{source} has history_scale_mode={shortened(self.history_scale_mode)}, which is unknown; "
                "use 'per_head' or 'scalar'."
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
