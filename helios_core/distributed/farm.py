"""A farm: films of a table on the workers of a Ray cluster.

Ray places the workers, restarts those that die and gives them their job again; the chunk store then has all chunks
that were finished, so that a lost worker costs the chunk at work.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import HeliosError, reason
from .farm_worker import Event, FarmFolder, FilmWorker, Outcome, Renderer, code_version
from .jobs import Job
from .members import reserved, within

POLL_SECONDS = 0.25
NEWS_SECONDS = 5.0  # of a worker that has just ended its film
# Jobs and outcomes are small; Ray's own default is a third of the memory.
OBJECT_STORE_BYTES = 100_000_000

Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Cluster:
    """Where the films are made: ``address`` None for a cluster of this machine's own, which ends with the farm.

    ``workers``, films at a time: None for as many as there are GPUs for, or one without GPUs; ``cpus`` of each process:
    None for its share.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int | None = None


def require_ray() -> ModuleType:
    """Ray, which the farm and the service need.

    Raises:
        HeliosError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
    try:
        import ray
    except ImportError:
        raise HeliosError('the farm needs Ray, which is not installed; run pip install "ray[serve]".') from None
    return ray


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """Ray, connected for as long as the block runs.

    Raises:
        HeliosError: there is no cluster at that address.
    """
    ray = require_ray()
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own))
    except Exception as error:  # Ray raises plain ones, too, of a node that did not start in time
        raise HeliosError(
            f"no Ray cluster can be reached at {address or 'this machine'} ({reason(error)}); start one with "
            "'ray start --head', or give its address."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def run_farm(
    jobs: Sequence[Job], renderer: Renderer, folder: FarmFolder, cluster: Cluster, tell: Tell
) -> Iterator[Outcome]:
    """Yields how each job ended, in the order in which they end; ``tell`` is given all that happens meanwhile.

    Raises:
        HeliosError: no cluster, or none of its workers can be used.
    """
    if jobs:
        for job in jobs:
            folder.tries(job).unlink(missing_ok=True)  # of a farm that was killed
        with connected(cluster.address) as ray:
            yield from _Farm(ray, renderer, folder, tell).run(jobs, cluster)


class _Farm:
    def __init__(self, ray: ModuleType, renderer: Renderer, folder: FarmFolder, tell: Tell):
        from ray.util import ActorPool

        self._ray, self._renderer, self._folder, self._tell = ray, renderer, folder, tell
        self._pool: Any = ActorPool([])
        self._joining: dict[Any, Any] = {}  # what a worker will answer when it is there -> the worker
        self._at_work: dict[str, tuple[Any, Job]] = {}  # by the actor's id
        self._groups: dict[str, Any] = {}  # the placement group of several processes, by the actor that leads them
        self._asked: dict[Any, tuple[str, str]] = {}  # what will be a worker's news -> its id, its film's
        self._refusals: list[str] = []
        self._unstarted = 0
        self._next_news = 0.0

    def run(self, jobs: Sequence[Job], cluster: Cluster) -> Iterator[Outcome]:
        self._unstarted = len(jobs)
        for job in jobs:
            self._pool.submit(self._start, job)
        for _ in range(self._hire(cluster, len(jobs))):
            self._join()
        left = {job.id: job for job in jobs}
        while left and (self._joining or self._pool.has_next()):
            self._admit()
            self._hear()
            outcome = self._next()
            if outcome is not None:
                left.pop(outcome.id)
                for ready in [ready for ready, (_, film) in self._asked.items() if film == outcome.id]:
                    self._tell_news(ready)
                for event in outcome.news:
                    self._tell(event)
                yield outcome
            self._dismiss_idle()
        why = self._refusals[-1] if self._refusals else "the last one died"
        if len(left) == len(jobs):
            raise HeliosError(f"no worker can be used: {why}")
        for job in left.values():
            yield Outcome(job.id, "failed", f"no worker is left for it: {why}")

    def _hire(self, cluster: Cluster, films: int) -> int:
        """How many workers to ask for; sets what each of their processes gets.

        Raises:
            HeliosError: no machine has so much.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus, cpus = ([int(node.get(name, 0)) for node in nodes] for name in ("GPU", "CPU"))
        processes, most = self._renderer.processes, max(cpus) // self._renderer.processes
        largest = max(gpus) or max(cpus)
        if processes > largest:
            raise HeliosError(f"--gpus-per-film {processes} is more than a machine has; give at most {largest}.")
        if (cluster.cpus or 0) > most:
            raise HeliosError(f"--cpus {cluster.cpus} is more than a machine of the cluster has; give at most {most}.")
        count = min(cluster.workers or sum(there // processes for there in gpus) or 1, films)
        share = 1 if any(gpus) else max(1, min(sum(cpus) // (count * processes), most))
        self._each = {"CPU": cluster.cpus or share, "GPU": int(any(gpus))}
        return count

    def _join(self) -> None:
        group = reserved(self._renderer.processes, self._each) if self._renderer.processes > 1 else None
        kind = self._ray.remote(FilmWorker).options(
            num_cpus=self._each["CPU"],
            num_gpus=self._each["GPU"],
            max_restarts=-1,
            max_task_retries=-1,  # a machine that is gone uses several up before that is known
            max_concurrency=2,  # a film, and news of it
            scheduling_strategy="SPREAD" if group is None else within(group, 0),
        )
        worker = kind.remote(self._renderer, code_version())
        self._joining[worker.identity.remote()] = worker
        if group is not None:
            self._groups[worker._actor_id.hex()] = group

    def _admit(self) -> None:
        """Takes workers that are there into the pool."""
        for ready in self._ray.wait(list(self._joining), timeout=0)[0] if self._joining else ():
            worker = self._joining.pop(ready)
            try:
                name = self._ray.get(ready)
            except self._ray.exceptions.RayError as error:
                self._refusals.append(_last_line(error))
                self._tell({"event": "refused", "message": self._refusals[-1]})
                self._release(worker)
                continue
            self._tell({"event": "worker", "worker": name})
            self._pool.push(worker)

    def _start(self, worker: Any, job: Job) -> Any:
        self._unstarted -= 1
        self._at_work[worker._actor_id.hex()] = worker, job
        return worker.render.remote(job, self._folder)

    def _next(self) -> Outcome | None:
        """The next film that ends, waited for a moment."""
        if not self._pool.has_next():
            time.sleep(POLL_SECONDS)
            return None
        before = dict(self._at_work)  # the pool gives a worker its next job before it says that the last one failed
        try:
            outcome: Outcome = self._pool.get_next_unordered(timeout=POLL_SECONDS)
        except TimeoutError:
            return None
        except self._ray.exceptions.RayActorError as error:
            outcome = _lost(before[error.actor_id][1], _last_line(error))
        return outcome

    def _hear(self) -> None:
        """Tells the news of workers that have films, a few times a second."""
        if self._asked:
            for ready in self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0]:
                self._tell_news(ready)
        if time.monotonic() >= self._next_news:
            self._next_news = time.monotonic() + POLL_SECONDS
            waited = {name for name, _ in self._asked.values()}
            for name, (worker, job) in self._at_work.items():
                if name not in waited:
                    self._asked[worker.news.remote()] = name, job.id

    def _tell_news(self, ready: Any) -> None:
        """Passes on what a worker was asked for, before anything that comes later."""
        del self._asked[ready]
        with contextlib.suppress(self._ray.exceptions.RayError):  # it died; its next film has news again
            for event in self._ray.get(ready, timeout=NEWS_SECONDS):
                self._tell(event)

    def _dismiss_idle(self) -> None:
        """Lets workers go that no job waits for: what they hold may be what a lost worker needs to come back."""
        idle = []
        while (worker := self._pool.pop_idle()) is not None:
            idle.append(worker)
        if not self._unstarted:
            idle += self._joining.values()
            self._joining.clear()
        for worker in idle:
            self._at_work.pop(worker._actor_id.hex(), None)
            self._ray.kill(worker)
            self._release(worker)

    def _release(self, worker: Any) -> None:
        """Gives back what is reserved for a worker's processes."""
        group = self._groups.pop(worker._actor_id.hex(), None)
        if group is not None:
            self._ray.util.remove_placement_group(group)


def _lost(job: Job, why: str) -> Outcome:
    return Outcome(job.id, "failed", f"{why.rstrip('.')}; run again: finished chunks are kept.")


def _last_line(error: BaseException) -> str:
    """What a worker's own error says, without Ray's trace of it."""
    line = str(error).strip().splitlines()[-1]
    return line.partition("HeliosError: ")[2] or line
