"""The other processes of a film that several make: Ray actors beside the worker that leads them, on one machine.

They end with that worker, whose actors they are, and it ends with any of them. Ray then starts it again with its job;
it starts others, and the film goes on from the store.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ..networks.parallel.team import Team

HERE = "127.0.0.1"
STRATEGY = "STRICT_PACK"  # one machine: exchanges between two are hardly faster than one process
Follow = Callable[[], None]
"""Computes for the first process until its film has ended."""

log = logging.getLogger(__name__)


def reserved(processes: int, each: Mapping[str, float]) -> Any:
    """A placement group of Ray's for the ``processes`` of a film, with the resources of ``each``."""
    from ray.util import placement_group

    return placement_group([dict(each)] * processes, strategy=STRATEGY)


def within(group: Any, bundle: int) -> Any:
    """Ray's ``scheduling_strategy`` for the process that has a group's ``bundle``; 0 leads."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, bundle)


class Member:
    """A process that computes for the first one."""

    def work(self, place: Mapping[str, str], load: Callable[[], Follow]) -> None:
        """Loads together with the others, then follows from film to film until it is ended."""
        os.environ.update(place)
        try:
            follow = load()
        except Exception:
            log.exception("the model was not loaded")  # the first process has been told, and says so
            return
        while True:
            follow()


class Members:
    """The ``count`` processes beside this one, which leads; it is the first in a placement group."""

    def __init__(self, count: int):
        self._count = count
        self._actors: list[Any] = []

    def gather(self, load: Callable[[], Follow]) -> None:
        """Starts them with ``load``; what this process loads next is loaded by all at the same time."""
        import ray

        group = ray.util.get_current_placement_group()
        assert group is not None, "whoever starts this worker reserves a group for its processes"
        port = _free_port()
        asked = []
        for rank in range(self._count + 1):
            place = {"RANK": rank, "WORLD_SIZE": self._count + 1, "MASTER_ADDR": HERE, "MASTER_PORT": port}
            place |= {"LOCAL_RANK": 0}  # Ray shows each process its own GPU alone
            environment = {name: str(value) for name, value in place.items()}
            if rank == 0:
                os.environ.update(environment)
                continue
            each = group.bundle_specs[rank]
            kind = ray.remote(Member).options(
                num_cpus=each.get("CPU", 0), num_gpus=each.get("GPU", 0), scheduling_strategy=within(group, rank)
            )
            self._actors.append(kind.remote())
            asked.append(self._actors[-1].work.remote(environment, load))
        threading.Thread(target=self._watch, args=(self._actors, asked), name="helios-members", daemon=True).start()

    def dismiss(self) -> None:
        """Ends them, if there are any."""
        if self._actors:
            import ray

            actors, self._actors = self._actors, []
            for actor in actors:
                ray.kill(actor)
            Team.announced().leave()

    def _watch(self, actors: Sequence[Any], asked: Sequence[Any]) -> None:
        """Notices one that ended or failed while the others wait for it, which over NCCL takes them minutes."""
        import ray

        left = list(asked)
        while left:
            done, left = ray.wait(left)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                if self._actors is actors:  # otherwise it was dismissed
                    end_process(error)


def end_process(reason: BaseException) -> NoReturn:
    """Ends this worker, because one of its film's processes is lost; Ray starts it again, with its job."""
    log.error("another process of the film is lost: %s", reason)
    logging.shutdown()
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HERE, 0))
        return free.getsockname()[1]
