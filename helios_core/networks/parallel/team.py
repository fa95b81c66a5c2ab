"""Several processes that work as one, over gloo or NCCL.

``torchrun`` or whoever starts the processes sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without them a
process is alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ...errors import HeliosError, reason, shortened

# What all take part in is over in seconds: who does not come in this time has failed.
USUAL_WAIT = timedelta(minutes=10)
# A process that has done its part of an uneven work, or waits to be asked.
LONGEST_WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class Team:
    """This process's place: ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1

    @classmethod
    def announced(cls) -> Team:
        """The place that the environment names; nobody is waited for.

        Raises:
            HeliosError: it names none that there can be.
        """
        place = []
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
            value = os.environ.get(name, default)
            if not value.isascii() or not value.isdigit() or len(value) > 6:
                raise HeliosError(f"{name}={shortened(value)} is no number of processes; start them with torchrun.")
            place.append(int(value))
        if place[0] >= place[1]:
            raise HeliosError(f"RANK={place[0]} must be below WORLD_SIZE={place[1]}; start them with torchrun.")
        return cls(*place)

    @classmethod
    def from_environment(cls, wait: timedelta = USUAL_WAIT) -> Team:
        """Joins the processes that the environment names, or is alone.

        ``wait`` is how long the others may take, now and in everything that all do together.

        Raises:
            HeliosError: wrong names in the environment, or the others do not come.
        """
        team = cls.announced()
        if team.size == 1 or dist.is_initialized():
            return team
        # NCCL where it is built in, for tensors on the GPU; gloo for those in host memory.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=wait)
        except (RuntimeError, ValueError) as error:
            raise HeliosError(
                f"WORLD_SIZE={team.size} processes cannot meet ({reason(error)}); start them with torchrun."
            ) from error
        return team

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def leave(self) -> None:
        """Ends what :meth:`from_environment` began."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def outlast_first(self) -> None:
        """Returns once process 0, which no longer answers, has ended."""
        with suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))  # over gloo, which notices that a process has ended

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.size > 1:
            dist.barrier()

    def device(self, device: torch.device | str) -> torch.device:
        """``cuda`` is this process's own GPU, and all else as it is.

        Raises:
            HeliosError: more processes on this machine than it has GPUs.
        """
        device = torch.device(device)
        if device.type != "cuda" or device.index is not None:
            return device
        own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= count:
            raise HeliosError(
                f"device={str(device)!r} has no GPU for process {own} of this machine, there are {count}; start fewer."
            )
        torch.cuda.set_device(own)
        return torch.device("cuda", own)


class LostProcessError(HeliosError):
    """Another process ended, or did not come in time."""


@contextmanager
def in_touch() -> Iterator[None]:
    """Around what all processes do together: a lost one ends it in a sentence.

    Raises:
        LostProcessError: another process ended, or did not come in time.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostProcessError(
            f"another process of this film ended or did not answer ({reason(error)}); see what it says itself, then "
            "run again: finished chunks are kept."
        ) from error
