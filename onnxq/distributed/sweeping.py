"""``onnxq sweep``: many models, targets and options as independent jobs, with one table at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrators.collect import processors
from onnxq.core.progress import Progress, silent
from onnxq.distributed.ray_actors import Cluster, connected, fitted
from onnxq.distributed.sweep_job import Row, known, make, make_apart, write_row
from onnxq.distributed.sweep_page import write_page
from onnxq.distributed.sweep_plan import SweepJob, read_plan
from onnxq.distributed.worker_pool import Workers

logger = logging.getLogger(__name__)

PAGE = "sweep.html"


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        rows: what is known of each job, in the order of the plan.
        page: the page with the table and the charts.
        resumed: how many jobs were done before.
    """

    rows: tuple[Row, ...]
    page: Path
    resumed: int

    @property
    def failed(self) -> tuple[Row, ...]:
        """The jobs that failed."""
        return tuple(row for row in self.rows if "error" in row)


def sweep(plan: Path, folder: Path, workers: Workers | None = None, progress: Progress = silent) -> Sweep:
    """Run the jobs of a plan that are not done yet, and write the page.

    A job is done if its model and its row are in ``folder``, and neither its options nor its files have
    changed. A job that fails is listed, and tried again by the next run; the others go on.

    Args:
        plan: the plan, see `onnxq.distributed.sweep_plan`.
        folder: where the models, the rows and the page go; on a cluster, storage that all machines share.
        workers: where to run; None: one process at a time, so that jobs do not disturb each other's timing.
        progress: called with the number of jobs done.

    Raises:
        ConfigError: the plan cannot be used.
    """
    jobs = read_plan(plan, folder.absolute())
    rows = {job.name: row for job in jobs if (row := known(job)) is not None}
    resumed, left = len(rows), [job for job in jobs if job.name not in rows]
    if resumed:
        logger.warning("%d of %d jobs were done before", resumed, len(jobs))
    progress("sweeping", resumed, len(jobs))
    for row in _made(left, workers or Workers(1)):
        rows[tuple(row["name"])] = row
        progress("sweeping", len(rows), len(jobs))
    ordered = tuple(rows[job.name] for job in jobs)
    page = folder / PAGE
    write_page(ordered, page, plan.name)
    return Sweep(ordered, page, resumed)


def _made(jobs: Sequence[SweepJob], workers: Workers) -> Iterator[Row]:
    if workers.cluster is not None:
        yield from _on_ray(jobs, workers.cluster)
        return
    pool = ThreadPoolExecutor(workers.count or processors())
    try:
        for done in as_completed([pool.submit(make_apart, job) for job in jobs]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(jobs: Sequence[SweepJob], cluster: Cluster) -> Iterator[Row]:
    with connected(cluster) as ray:
        place = fitted(cluster, ray.cluster_resources())
        task: Any = ray.remote(num_cpus=place.cpus, num_gpus=place.gpus, max_retries=0, max_calls=1)(make)
        waiting = list(reversed(jobs))
        running: dict[Any, SweepJob] = {}
        while waiting or running:
            while waiting and len(running) < place.workers:
                job = waiting.pop()
                running[task.remote(job)] = job
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(done)
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as error:
                row = {"name": job.name, "key": job.key, "error": f"its worker was lost: {error}"}
                write_row(job, row)
                yield row
