"""Self-attention of one sequence over several processes: DeepSpeed-Ulysses (arXiv 2309.14509).

Every process has its share of the tokens, and computes with it all but self-attention alone. There, one exchange gives
each process all tokens of some heads, and another one brings the result back. Norms and rotary positions come before
the exchange, while a token's heads are still together.

Shares need not be equal, nor the heads: nothing is padded, so nothing is masked. A process's tokens are a stretch of
the history and one of the noisy tokens, so that history still comes first in each share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import HeliosError
from ..parallel.team import in_touch
from .attention_backends import AttentionFunction


def shares(count: int, processes: int) -> tuple[int, ...]:
    """``count`` things in ``processes`` parts, as equal as can be, larger ones first."""
    return tuple((count + processes - 1 - place) // processes for place in range(processes))


@dataclass(frozen=True)
class Ulysses:
    """Divides sequences among ``size`` processes, of which this is number ``place``; ``group`` is torch's."""

    place: int
    size: int
    group: Any = None
    _divisions: dict[tuple, Division] = field(default_factory=dict)

    def division(self, history: int, noisy: int) -> Division:
        """Who has which of ``history`` and ``noisy`` tokens; the same object for the same counts.

        Raises:
            HeliosError: not a token for each.
        """
        fewest = min(noisy, history or noisy)
        if fewest < self.size:
            raise HeliosError(f"{fewest} tokens cannot be divided among {self.size} processes; take a larger size.")
        key = (history, noisy)
        if key not in self._divisions:
            # A film has three sizes; the parts that are larger by one fall on other processes in both.
            self._divisions[key] = Division(self, shares(history, self.size), shares(noisy, self.size)[::-1])
        return self._divisions[key]


@dataclass(frozen=True)
class Division:
    """Tokens of every process, in their order: ``history`` and ``noisy``."""

    ulysses: Ulysses
    history: tuple[int, ...]
    noisy: tuple[int, ...]
    _attention: dict[AttentionFunction, AttentionFunction] = field(default_factory=dict)

    @property
    def own_history(self) -> int:
        """History tokens of this process."""
        return self.history[self.ulysses.place]

    @property
    def own_noisy(self) -> int:
        """Noisy tokens of this process."""
        return self.noisy[self.ulysses.place]

    @cached_property
    def both(self) -> tuple[int, ...]:
        """Tokens of every process."""
        return tuple(map(sum, zip(self.history, self.noisy, strict=True)))

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This process's tokens of ``x``, which has all of them in ``dim``, history first."""
        history, noisy = x.split([sum(self.history), sum(self.noisy)], dim)
        place = self.ulysses.place
        return torch.cat([history.split(self.history, dim)[place], noisy.split(self.noisy, dim)[place]], dim)

    def joined(self, x: Tensor) -> Tensor:
        """Every process's noisy tokens [B,n,C] -> [B,N,C], for all processes."""
        batch, own, width = x.shape
        sent = x.transpose(0, 1).flatten().repeat(self.ulysses.size)
        counts = [count * batch * width for count in self.noisy]
        received = self._exchanged(sent, [own * batch * width] * self.ulysses.size, counts)
        return received.view(-1, batch, width).transpose(0, 1)

    def attention(self, inner: AttentionFunction) -> AttentionFunction:
        """Attention of all tokens to all: the tokens of one process in and out, ``inner`` for whole heads.

        The same object for the same ``inner``: torch.compile makes a new graph for a new one.
        """
        if inner not in self._attention:

            @torch.compiler.disable
            def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
                each = shares(heads, self.ulysses.size)
                asking = self.both if q.shape[1] == k.shape[1] else self.noisy  # the last block's queries
                if asking is self.both:
                    q, k, v = self._whole((q, k, v), self.both, each)
                else:
                    (q,), (k, v) = self._whole((q,), asking, each), self._whole((k, v), self.both, each)
                return self._parted(inner(q, k, v, each[self.ulysses.place]), asking, each)

            self._attention[inner] = attention
        return self._attention[inner]

    def _whole(self, parts: tuple[Tensor, ...], lengths: tuple[int, ...], each: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Own tokens of all heads, every part [B,n,heads*D] -> all tokens of own heads, [B,N,own*D]."""
        batch, own, _ = parts[0].shape
        by_head = torch.stack(parts, dim=2).transpose(0, 1).unflatten(-1, (sum(each), -1))  # [n,B,parts,heads,D]
        row = batch * len(parts) * by_head.shape[-1]
        sent = torch.cat([piece.flatten() for piece in by_head.split(each, dim=3)])
        mine = each[self.ulysses.place]
        received = self._exchanged(
            sent, [own * row * count for count in each], [length * row * mine for length in lengths]
        )
        joint = received.view(sum(lengths), batch, len(parts), -1)
        return tuple(part.transpose(0, 1) for part in joint.unbind(2))

    def _parted(self, out: Tensor, lengths: tuple[int, ...], each: tuple[int, ...]) -> Tensor:
        """All tokens of own heads [B,N,own*D] -> own tokens of all heads [B,n,heads*D]."""
        batch, own = out.shape[0], lengths[self.ulysses.place]
        mine = each[self.ulysses.place]
        row = batch * (out.shape[-1] // mine)
        sent = out.transpose(0, 1).flatten()
        counts = [own * row * count for count in each]
        received = self._exchanged(sent, [length * row * mine for length in lengths], counts)
        return torch.cat([part.view(own, batch, -1) for part in received.split(counts)], dim=-1).transpose(0, 1)

    def _exchanged(self, sent: Tensor, outgoing: list[int], incoming: list[int]) -> Tensor:
        """Numbers to every process, ``outgoing`` of ``sent`` in turn, and from every process, ``incoming``."""
        received = sent.new_empty(sum(incoming))
        with in_touch():
            dist.all_to_all_single(received, sent, incoming, outgoing, group=self.ulysses.group)
        return received
