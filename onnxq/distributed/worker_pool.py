"""Where work runs: on processes of this machine, or on actors of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from calibrators.collect import processors
from onnxq.distributed.processes import Processes
from onnxq.distributed.ray_actors import Cluster, RayActors, connected, fitted
from onnxq.distributed.scheduler import Backend, WorkerJob


@dataclass(frozen=True)
class Workers:
    """Where work runs.

    Attributes:
        count: the number of workers; 0: as many as fit.
        cluster: the Ray cluster; None: processes of this machine.
    """

    count: int = 0
    cluster: Cluster | None = None

    @property
    def threads(self) -> int:
        """The number of threads of each worker: all of them share the processors."""
        if self.cluster is not None:
            return max(1, round(self.cluster.cpus))
        return max(1, processors() // (self.count or processors()))


@contextmanager
def opened(job: WorkerJob, workers: Workers, threads: int = 0) -> Iterator[Backend]:
    """Start the workers, and end them afterwards.

    Args:
        job: what is to be done.
        workers: where to run.
        threads: the number of threads of each worker; 0: `Workers.threads`.

    Raises:
        ConfigError: there is no such cluster, or it has no room.
    """
    threads = threads or workers.threads
    if workers.cluster is None:
        with Processes(job, workers.count or processors(), threads) as processes:
            yield processes
        return
    with connected(workers.cluster) as ray:
        cluster = fitted(workers.cluster, ray.cluster_resources())
        with RayActors(ray, job, cluster, threads) as actors:
            yield actors
