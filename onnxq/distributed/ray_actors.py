"""Workers as actors of a Ray cluster. Statistics stay in its object store; the driver holds references."""

from __future__ import annotations

import logging
import os
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from onnxq.core.errors import ConfigError
from onnxq.distributed.counting import Counted, merge_packed
from onnxq.distributed.scheduler import WorkerJob, WorkerLostError


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and what of it.

    Attributes:
        address: the address of the cluster; "" for the one that RAY_ADDRESS names, or a new local one.
        workers: the number of actors; 0: as many as fit.
        cpus: CPUs of each actor.
        gpus: GPUs of each actor.
    """

    address: str = ""
    workers: int = 0
    cpus: float = 1.0
    gpus: float = 0.0


def require_ray() -> Any:
    """Import Ray.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed: pip install 'onnxq[ray]'") from error
    return ray


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; one that was connected before stays so."""
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            cluster.address or None,
            include_dashboard=None if cluster.address else False,
            logging_level="ERROR",
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = cluster.address or "a new local cluster"
        raise ConfigError(f"no Ray cluster at {where}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def fitted(cluster: Cluster, resources: dict[str, float], readers: float = 0.0) -> Cluster:
    """Choose the number of actors, and check that they leave room.

    Args:
        cluster: what was asked for.
        resources: what the cluster has, by the name of the resource.
        readers: CPUs that must be left for the tasks that read the data.

    Raises:
        ConfigError: the actors would take what is needed to read the data, or more than there is.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cluster.cpus < 0 or cluster.gpus < 0 or cluster.workers < 0 or cluster.cpus + cluster.gpus == 0:
        raise ConfigError(f"{cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs a worker: give a positive number")
    most = [(cpus - readers) / cluster.cpus] if cluster.cpus else []
    most += [gpus / cluster.gpus] if cluster.gpus else []
    fits = int(min(most) + 1e-9)
    wanted = cluster.workers or max(fits, 0)
    if 1 <= wanted <= fits:
        return replace(cluster, workers=wanted)
    count = max(wanted, 1)
    each = f"{cluster.cpus:g} CPUs" + (f" and {cluster.gpus:g} GPUs" if cluster.gpus else "")
    why = "which leaves none to read the data, so nothing would ever go on" if readers else "which it lacks"
    share = (cpus - readers) / count
    remedy = [f"--cpus-per-worker {int(share * 100) / 100:g}"] if share >= 0.01 else []
    remedy += [f"--workers {fits}"] if fits >= 1 else []
    if cluster.gpus and gpus < cluster.gpus * count:
        remedy = (
            [f"--workers {int(gpus / cluster.gpus)}"] if gpus >= cluster.gpus else ["a cluster with GPUs"]
        )
    raise ConfigError(
        f"{count} workers of {each} take {cluster.cpus * count:g} of {cpus:g} CPUs"
        f"{f' and {cluster.gpus * count:g} of {gpus:g} GPUs' if cluster.gpus else ''}, {why}: use "
        f"{' or '.join(remedy) or 'a larger cluster'}"
    )


class RayActors:
    """Actors, each with one session; the model is sent once to each machine."""

    def __init__(self, ray: Any, job: WorkerJob, cluster: Cluster, threads: int) -> None:
        """Start the actors.

        Args:
            ray: the module, connected.
            job: what is to be done.
            cluster: the number and the size of the actors.
            threads: the number of threads of each.
        """
        self._ray, self._cluster = ray, cluster
        self._job = ray.put(job)
        actor: Any = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0)(_Actor)
        self._make: Callable[[], Any] = lambda: actor.remote(self._job, threads)
        self._merger: Any = ray.remote(num_cpus=0, num_returns=2)(_merge)
        self._actors = [self._make() for _ in range(cluster.workers)]
        self._load: Tally[int] = Tally()
        self._tickets: dict[Any, tuple[int, Any, Any]] = {}

    def __enter__(self) -> RayActors:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    @property
    def workers(self) -> int:
        """The number of actors."""
        return self._cluster.workers

    def submit(self, unit: Any) -> Any:
        """Begin one unit of the work, at the actor with the least."""
        index = min(range(len(self._actors)), key=lambda i: self._load[i])
        actor = self._actors[index]
        report, packed = actor.run.options(num_returns=2).remote(unit)
        self._load[index] += 1
        self._tickets[report] = (index, actor, packed)
        return report

    def merge(self, parts: Sequence[Any]) -> Any:
        """Begin to merge statistics where there is room; they do not pass through the driver."""
        report, packed = self._merger.remote(*parts)
        self._tickets[report] = (-1, None, packed)
        return report

    def wait(self, tickets: Collection[Any]) -> Any:
        """Wait until one of the tickets is done; return every second to heed interrupts."""
        while True:
            done, _ = self._ray.wait(list(tickets), num_returns=1, timeout=1.0, fetch_local=False)
            if done:
                return done[0]

    def result(self, ticket: Any) -> tuple[Counted | None, Any]:
        """Return what came of a ticket; raise WorkerLostError if its actor or machine is lost."""
        index, actor, packed = self._tickets.pop(ticket)
        self._load[index] -= 1
        try:
            return self._ray.get(ticket), packed
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, self._ray.exceptions.RayError):  # an argument of a merge was lost
                raise WorkerLostError("its statistics are gone") from error
            raise cause from None
        except self._ray.exceptions.RayError as error:
            self._replace(index, actor)
            raise WorkerLostError(type(error).__name__) from error

    def fetch(self, packed: Any) -> bytes:
        """Fetch packed statistics."""
        try:
            return bytes(self._ray.get(packed))
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(type(error).__name__) from error

    def _replace(self, index: int, actor: Any) -> None:
        """Start another actor in place of one that died, once."""
        if actor is not None and self._actors[index] is actor:
            self._actors[index] = self._make()


class _Actor:
    def __init__(self, job: WorkerJob, threads: int) -> None:
        self._work = job.open(threads)

    def run(self, unit: Any) -> tuple[Counted, bytes]:
        return self._work(unit)


def _merge(*parts: bytes) -> tuple[None, bytes]:
    return None, merge_packed(parts)
