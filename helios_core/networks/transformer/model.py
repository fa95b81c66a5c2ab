"""HeliosTransformer: the 14B autoregressive video transformer (arXiv 2603.04379, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import HeliosError
from .attention_backends import AttentionFunction, sdpa_attention
from .block import BlockContext, HeliosBlock
from .config import TransformerConfig
from .graphs import Capture, GraphedForward
from .kernels import affine_norm, compute_dtype, rotation
from .prepared import PreparedHistory, PreparedText
from .rope import NOISY_START, RopeTables, pad_to_multiple
from .ulysses import Ulysses

RunBlock = Callable[[int, Tensor, BlockContext, tuple[Tensor, Tensor], bool], Tensor]


class HeliosTransformer(nn.Module):
    """Predicts the velocity of a chunk's noisy latents from text and history context.

    Block parameters have Wan 2.1's names, so Wan LoRAs map directly. ``operations`` supplies Linear,
    Conv3d, LayerNorm and RMSNorm (ComfyUI passes its own); ``attention`` any :class:`AttentionFunction`.
    Modulation tables stay float32 in every precision, as in the reference.

    ``ulysses`` divides every forward among processes, which all call it with the same arguments at the same time.
    """

    def __init__(
        self,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = nn,
        attention: AttentionFunction = sdpa_attention,
        **config: Any,
    ):
        super().__init__()
        self.config = TransformerConfig(**config)
        self.config.check()
        self.dtype = dtype or torch.get_default_dtype()
        self.attention = attention
        self.ulysses: Ulysses | None = None
        self._graphed: GraphedForward | None = None
        self._rope = RopeTables(self.config.rope_dim, self.config.rope_theta)
        c, dim = self.config, self.config.dim
        at: dict[str, Any] = {"device": device, "dtype": dtype}

        self.patch_embedding = operations.Conv3d(
            c.in_channels, dim, kernel_size=c.patch_size, stride=c.patch_size, **at
        )
        if c.has_multi_term_memory_patch:
            for name, factor in (("patch_short", 1), ("patch_mid", 2), ("patch_long", 4)):
                size = tuple(factor * p for p in c.patch_size)
                setattr(self, name, operations.Conv3d(c.in_channels, dim, kernel_size=size, stride=size, **at))
        self.text_embedding = nn.Sequential(
            operations.Linear(c.text_dim, dim, **at),
            nn.GELU(approximate="tanh"),
            operations.Linear(dim, dim, **at),
        )
        self.time_embedding = nn.Sequential(
            operations.Linear(c.freq_dim, dim, **at), nn.SiLU(), operations.Linear(dim, dim, **at)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), operations.Linear(dim, 6 * dim, **at))
        amplify = c.history_scale_mode if c.is_amplify_history else None
        self.blocks = nn.ModuleList(
            HeliosBlock(
                dim,
                c.ffn_dim,
                c.num_attention_heads,
                c.eps,
                c.cross_attn_norm,
                c.guidance_cross_attn,
                amplify,
                operations,
                **at,
            )
            for _ in range(c.num_layers)
        )
        self.output = OutputHead(dim, c.out_channels * math.prod(c.patch_size), c.eps, operations, **at)

    def compile_blocks(self, **options: Any) -> None:
        """Compiles the blocks (torch.compile's ``options``), with one graph for each of a chain's sizes.

        The blocks share their graphs, and every chunk after the first uses those of the first.
        """
        for block in self.blocks:
            block.compile(dynamic=False, **options)

    def use_cuda_graphs(self, capture: Capture | None = None) -> None:
        """Records the forward of every latent size at its first use, and replays it from then on.

        The weights must stay where they are. ``capture`` records (see :mod:`graphs`).
        """
        self._graphed = GraphedForward(self._predict, self._rope.held, capture)

    # --- once per prompt, once per chunk -------------------------------------------------------------------

    def prepare_text(self, text: Tensor) -> PreparedText:
        """Text embeddings [B,512,text_dim] -> every block's cross-attention keys and values."""
        projected = self.text_embedding(text)
        return PreparedText(tuple(block.cross_attn.prepare(projected) for block in self.blocks))

    def prepare_history(self, short: Tensor, mid: Tensor, long: Tensor) -> PreparedHistory:
        """History latents -> patch tokens and rotary table, in token order long, mid, short.

        short [B,16,2,H,W] (anchor first), mid [B,16,2,H,W], long [B,16,16,H,W], all at full resolution.
        """
        self._check_history(short, mid, long)
        pt, ph, pw = self.config.patch_size
        parts = [
            self.patch_long(pad_to_multiple(long, (4 * pt, 4 * ph, 4 * pw))),
            self.patch_mid(pad_to_multiple(mid, (2 * pt, 2 * ph, 2 * pw))),
            self.patch_short(short),
        ]
        height, width = parts[2].shape[-2:]
        tokens = torch.cat([part.flatten(2).transpose(1, 2) for part in parts], dim=1)
        return PreparedHistory(tokens, self._rope.history(height, width, short.device))

    # --- once per step -------------------------------------------------------------------------------------

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor | PreparedText,
        history_short: Tensor | None = None,
        history_mid: Tensor | None = None,
        history_long: Tensor | None = None,
        *,
        history: PreparedHistory | None = None,
        attention: AttentionFunction | None = None,
        run_block: RunBlock | None = None,
    ) -> Tensor:
        """Velocity [B,16,T,h,w] of noisy ``latents`` [B,16,T,h,w] at ``timestep`` [B] (0..1000).

        Args:
            text: [B,512,text_dim], or what :meth:`prepare_text` made of it.
            history_short, history_mid, history_long: as for :meth:`prepare_history`; without any, frames start at
                position 0.
            history: what :meth:`prepare_history` made, in place of the three.
            attention, run_block: a host application's own attention, and its way to run a block.

        Raises:
            HeliosError: wrong shapes, only some of the three history tensors, or prepared history beside them.
        """
        if history is None:
            history = self._prepared_history(history_short, history_mid, history_long)
        elif any(part is not None for part in (history_short, history_mid, history_long)):
            raise HeliosError("history is given prepared and as tensors; pass one of them.")
        if not isinstance(text, PreparedText):
            text = self.prepare_text(text.to(latents.dtype))
        if self._graphed is not None and attention is None and run_block is None:
            return self._graphed(latents, timestep, text, history)
        return self._predict(latents, timestep, text, history, attention, run_block)

    def each(
        self, latents: Tensor, timestep: Tensor, texts: Sequence[PreparedText], history: PreparedHistory | None
    ) -> list[Tensor]:
        """The velocity under each of several texts, one after the other, as the reference does."""
        return [self(latents, timestep, text, history=history) for text in texts]

    def _predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: PreparedText,
        history: PreparedHistory | None,
        attention: AttentionFunction | None = None,
        run_block: RunBlock | None = None,
    ) -> Tensor:
        self._check_latents(latents, timestep)
        x = self.patch_embedding(latents)
        frames, height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        start = 0 if history is None else NOISY_START
        rope = self._rope.noisy(frames, height, width, start, x.device)
        history_length = 0
        if history is not None:
            history_length = history.tokens.shape[1]
            x = torch.cat([history.tokens, x], dim=1)
            rope = torch.cat([history.rope, rope])

        run, attention = run_block or self.run_block, attention or self.attention
        noisy_length, joint = frames * height * width, attention
        division = None if self.ulysses is None else self.ulysses.division(history_length, noisy_length)
        if division is not None:
            x, rope, joint = division.own(x, 1), division.own(rope, 0), division.attention(attention)
            history_length, noisy_length = division.own_history, division.own_noisy

        embedding, history_modulation, noisy_modulation = self._modulation(timestep, x.dtype)
        context = BlockContext(history_length, history_modulation, noisy_modulation, rotation(rope), joint, attention)
        last = len(self.blocks) - 1
        for index, keys_values in enumerate(text.keys_values):
            x = run(index, x, context, keys_values, index == last)
        # A host may skip the last block, which is the one that drops the history tokens.
        x = self.output(x[:, -noisy_length:], embedding)
        return self._unpatchify(x if division is None else division.joined(x), frames, height, width)

    def run_block(
        self, index: int, x: Tensor, context: BlockContext, keys_values: tuple[Tensor, Tensor], noisy_only: bool
    ) -> Tensor:
        """Block number ``index`` as it is; see :meth:`HeliosBlock.forward`."""
        return self.blocks[index](x, context, keys_values, noisy_only)

    def _modulation(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """timestep [B] -> time embedding [B,C], history rows [1 or B,6,C], noisy rows [B,6,C], float32 rows."""
        zero = timestep.new_zeros(1)
        frequencies = timestep_frequencies(torch.cat([timestep, zero]), self.config.freq_dim)
        embedding = self.time_embedding(frequencies.to(compute_dtype(self.time_embedding[0], dtype))).to(dtype)
        rows = self.time_projection(embedding).float().unflatten(-1, (6, -1))
        noisy = rows[:-1]
        return embedding[:-1], rows[-1:] if self.config.zero_history_timestep else noisy, noisy

    def _unpatchify(self, tokens: Tensor, frames: int, height: int, width: int) -> Tensor:
        pt, ph, pw = self.config.patch_size
        x = tokens.unflatten(1, (frames, height, width)).unflatten(-1, (pt, ph, pw, -1))
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    # --- checks --------------------------------------------------------------------------------------------

    def _prepared_history(self, short, mid, long) -> PreparedHistory | None:
        given = [part is not None for part in (short, mid, long)]
        if not any(given):
            return None
        if not all(given):
            raise HeliosError(
                "history_short, history_mid and history_long must be given together; pass all three or none."
            )
        return self.prepare_history(short, mid, long)

    def _check_history(self, short: Tensor, mid: Tensor, long: Tensor) -> None:
        if not self.config.has_multi_term_memory_patch:
            raise HeliosError("this model has no history patches; pass no history.")
        expected = {"history_short": (short, 2), "history_mid": (mid, 2), "history_long": (long, 16)}
        for name, (x, frames) in expected.items():
            channels = self.config.in_channels
            if x.ndim != 5 or x.shape[1] != channels or x.shape[2] != frames or x.shape[3:] != short.shape[3:]:
                raise HeliosError(
                    f"{name} has shape {list(x.shape)}; it must be [B,{channels},{frames},H,W] "
                    "with the same H and W as the other history tensors."
                )

    def _check_latents(self, latents: Tensor, timestep: Tensor) -> None:
        channels, (pt, ph, pw) = self.config.in_channels, self.config.patch_size
        shape = latents.shape
        if len(shape) != 5 or shape[1] != channels or shape[2] % pt or shape[3] % ph or shape[4] % pw:
            raise HeliosError(
                f"latents has shape {list(shape)}; it must be [B,{channels},T,h,w] with h divisible by {ph} "
                f"and w by {pw}."
            )
        if timestep.shape != shape[:1]:
            raise HeliosError(f"timestep has shape {list(timestep.shape)}; it must be [{shape[0]}], one per sample.")


class OutputHead(nn.Module):
    """Last modulation and projection to latent patches (not named ``head``: core would take that for Wan 2.1)."""

    def __init__(self, dim: int, out_features: int, eps: float, operations: Any, device, dtype):
        super().__init__()
        self.eps = eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim, device=device, dtype=torch.float32))
        self.proj = operations.Linear(dim, out_features, device=device, dtype=dtype)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B,L,C] and time embedding [B,C] -> [B,L,out_features]."""
        shift, scale = (self.modulation.to(x.device) + embedding.float().unsqueeze(1)).unsqueeze(2).unbind(1)
        return self.proj(affine_norm(x, scale, shift, self.eps))


def timestep_frequencies(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal features [B,dim] of timesteps [B], float32, cosines first."""
    half = dim // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * exponents.exp()
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))
