"""The processes of one film: how they find each other, what the first tells the others, and how they end together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import HeliosError, shortened
from ..transformer import HeliosTransformer
from ..transformer.ulysses import Ulysses
from .channel import Channel
from .decoder import Decoder
from .team import LONGEST_WAIT, USUAL_WAIT, Team, in_touch

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What process 0 wants done; ``kind`` is text, history, velocity or end.

    ``number`` names what is prepared, ``texts`` and ``history`` say what of it a velocity is of, and ``dropped`` what
    nobody will ask for again. Tensors of the shapes and types ``given`` follow.
    """

    kind: str
    number: int = 0
    texts: tuple[int, ...] = ()
    history: int | None = None
    dropped: tuple[int, ...] = ()
    given: tuple[tuple[torch.Size, torch.dtype], ...] = ()


class Crew:
    """The processes of one film.

    Process 0 leads: it alone has prompts, random numbers, solver, store, video and VAE, and asks the others for their
    part of each forward. So nothing can come to differ between processes but a velocity's parts. With ``halves`` 2 the
    second half of the processes computes the velocity of the negative prompt. With ``decode_parallel`` the last process
    takes no part in forwards: it decodes.
    """

    def __init__(self, team: Team, halves: int = 1, decode_parallel: bool = False):
        """Called by all processes of ``team`` at the same time."""
        self.team, self.halves = team, halves
        # Those that compute forwards.
        self.sampling = team.size - decode_parallel
        self.context = self.sampling // halves
        self.half, place = divmod(team.rank, self.context)
        # False once this process has left a forward that others are in: they answer no more.
        self.whole = True
        channel = None
        with in_touch():
            groups = [
                dist.new_group(range(first, first + self.context), USUAL_WAIT)
                for first in range(0, self.sampling, self.context)
            ]
            # Orders come when process 0 has something to ask: after it has read a prompt, decoded, or written a file.
            orders = dist.new_group(range(self.sampling), LONGEST_WAIT, "gloo")
            tensors, self._reports = None, orders
            if decode_parallel:
                tensors = dist.new_group(range(self.sampling), USUAL_WAIT)
                self._reports = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
                pair = dist.new_group([0, self.sampling], LONGEST_WAIT, "gloo")
                channel = Channel(pair, pair)
        self._orders = Channel(orders, tensors)
        divides = self.context > 1 and not self.decodes
        self.ulysses = Ulysses(place, self.context, groups[self.half]) if divides else None
        self.decoder = Decoder(channel, self.sampling) if channel is not None and self.leads else None
        # What the process that decodes is asked through; None in all others.
        self.asked = channel if self.decodes else None

    @classmethod
    def join(cls, context_parallel: int = 1, cfg_parallel: bool = False, decode_parallel: bool = False) -> Crew | None:
        """The crew of the processes that the environment names; None for a process alone.

        Raises:
            HeliosError: as many processes as are asked for are not there.
        """
        if not isinstance(context_parallel, int) or isinstance(context_parallel, bool) or context_parallel < 1:
            raise HeliosError(f"context_parallel={shortened(context_parallel)} must be a whole number from 1.")
        halves = 2 if cfg_parallel else 1
        wanted, there = context_parallel * halves + decode_parallel, Team.announced().size
        if wanted == 1:
            return None
        if wanted != there:
            switches = {"cfg_parallel": cfg_parallel, "decode_parallel": decode_parallel}
            more = " and ".join(f"{name}=True" for name, value in switches.items() if value)
            raise HeliosError(
                f"context_parallel={context_parallel}{f' with {more}' if more else ''} needs {wanted} processes, not "
                f"{there}; start them with torchrun --nproc-per-node {wanted}."
            )
        return cls(Team.from_environment(), halves, decode_parallel)

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.team.leads

    @property
    def decodes(self) -> bool:
        """Whether this process has no part in forwards."""
        return self.team.rank == self.sampling

    def divide(self, transformer: HeliosTransformer) -> None:
        """Gives ``transformer``, this process's copy, its part of every forward.

        Raises:
            HeliosError: more processes than heads.
        """
        heads = transformer.config.num_attention_heads
        if self.context > heads:
            raise HeliosError(
                f"context_parallel={self.context} is more than the model has attention heads; use at most {heads}."
            )
        transformer.ulysses = self.ulysses

    def check_guidance(self, scale: float) -> None:
        """Refuses a half without work."""
        if self.halves > 1 and scale <= 1:
            raise HeliosError(
                f"cfg_parallel=True needs guidance, which guidance_scale={scale:g} has not; leave it off, or set more "
                "than 1."
            )

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Around what every process does for itself: it fails for all where it fails for one.

        Raises:
            HeliosError: another process's reason; a process's own comes as it is.
        """
        try:
            yield
        except Exception as error:
            self._reasons(str(error) or type(error).__name__)
            raise
        for rank, told in enumerate(self._reasons(None)):
            if told is not None:
                raise HeliosError(f"process {rank}: {told}")

    def _reasons(self, own: str | None) -> list[str | None]:
        told: list[str | None] = [None] * self.team.size
        with in_touch():
            dist.all_gather_object(told, own, group=self._reports)
        return told

    # --- process 0 -----------------------------------------------------------------------------------------

    def order(self, order: Order, tensors: Sequence[Tensor] = ()) -> None:
        """Tells the others; ``tensors`` are what ``order.given`` says."""
        self._orders.tell(0, order, tensors)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around this process's part of what all compute."""
        try:
            yield
        except HeliosError:  # all have met the same
            raise
        except BaseException:
            self.whole = False
            raise

    def film(self, begin: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The film that ``begin`` begins at once; the others work until it ends, in whichever way."""

        def running() -> Iterator[Any]:
            try:
                film = begin()
                yield None
                yield from film
            except BaseException:
                if self.whole:
                    with suppress(HeliosError):  # what failed may be one of the others
                        self._end()
                raise
            self._end()

        begun = running()
        next(begun)
        return begun

    def _end(self) -> None:
        self.order(Order("end"))
        if self.decoder is not None:
            self.decoder.end()

    # --- the others ----------------------------------------------------------------------------------------

    def receive(self, device: torch.device) -> tuple[Order, list[Tensor]]:
        """What process 0 wants next, and its tensors on ``device``."""
        order: Order = self._orders.told(0)
        return order, [self._orders.tensor(0, shape, dtype, device) for shape, dtype in order.given]

    # --- both ----------------------------------------------------------------------------------------------

    def paired(self, velocity: Tensor) -> list[Tensor]:
        """Each half's velocity, own ``velocity`` among them; for process 0, and of its own half alone elsewhere."""
        pair = [velocity.contiguous()]
        with in_touch():
            if self.leads:
                pair.append(torch.empty_like(pair[0]))
                dist.recv(pair[1], self.context)
            elif self.team.rank == self.context:
                dist.send(pair[0], 0)
        return pair


def of_a_crew(
    stream: Callable[Concatenate[Any, P], Iterator[T]],
) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """Makes a pipeline's method one that the processes of its ``crew`` call together: process 0 gets the film."""

    @functools.wraps(stream)
    def shared(pipeline: Any, *args: P.args, **keywords: P.kwargs) -> Iterator[T]:
        crew: Crew | None = pipeline.crew
        if crew is None:
            return stream(pipeline, *args, **keywords)
        if crew.leads:
            return crew.film(lambda: stream(pipeline, *args, **keywords))
        pipeline.follow()
        return iter(())

    return shared
