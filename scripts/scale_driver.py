"""Calibrate as a process of its own, and print what it cost: pace after start-up, peak memory of the driver.

The argument is a JSON object with model, data, options, output; and workers, ray, kill or shuffle.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxq.calibration.shards import Scope
from onnxq.core.config import QuantConfig
from onnxq.distributed import Cluster, Workers, calibrate_dataset, calibrate_on
from onnxq.distributed.ray_actors import RayActors
from onnxq.pipelines.calibrate import calibrate

WARM = 0.05
"""The share of the samples after which the pace is taken: until then workers start and open sessions."""


class Pace:
    """Notes when samples are done."""

    def __init__(self) -> None:
        self.times: list[tuple[int, float]] = []
        self.total = 0

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Note the number of samples that are done."""
        if stage == "calibrating":
            self.times.append((done, time.perf_counter()))
            self.total = total or done

    def seconds_per_sample(self) -> float:
        """The time of a sample after start-up, until everything was merged and written."""
        first, began = next(pair for pair in self.times if pair[0] >= WARM * self.total and pair[0])
        return (time.perf_counter() - began) / max(self.total - first, 1)


@contextmanager
def killing(wanted: bool) -> Iterator[list[int]]:
    """Kill the actor that reports first, if that is wanted."""
    result, killed = RayActors.result, list[int]()

    def kill(self: RayActors, ticket: Any) -> Any:
        found = result(self, ticket)
        if wanted and not killed and found[0] is not None:
            killed.append(found[0].process)
            os.kill(found[0].process, signal.SIGKILL)
        return found

    RayActors.result = kill  # type: ignore[method-assign]
    yield killed
    RayActors.result = result  # type: ignore[method-assign]


def shuffled(job: dict[str, Any], config: QuantConfig, pace: Pace) -> None:
    """Calibrate on a dataset whose rows are in random order, in seven partitions."""
    import numpy as np
    import ray

    arrays = np.load(job["data"])
    rows = [
        {"number": i, **{name: arrays[name][i] for name in arrays.files}}
        for i in range(len(arrays[arrays.files[0]]))
    ]
    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items(rows).repartition(7).random_shuffle(seed=job["shuffle"])
    calibrate_dataset(
        job["model"], dataset, config, Cluster(workers=2, cpus=0.5), number="number", progress=pace
    )


def main() -> None:
    """Run one calibration."""
    job = json.loads(sys.argv[1])
    pace, started = Pace(), time.perf_counter()
    options = {**job.get("options", {}), "save_statistics": job["output"]}
    if "shuffle" in job:
        shuffled(job, QuantConfig(**options), pace)
    elif "workers" not in job:
        config = QuantConfig(data=job["data"], **options)
        calibrate(job["model"], None, config, pace, Scope(moments=job.get("moments", False)))
    else:
        count, cpus = job["workers"], 1.0 if job["workers"] <= (os.cpu_count() or 1) else 0.5
        cluster = Cluster(workers=count, cpus=cpus) if job.get("ray") else None
        config = QuantConfig(data=job["data"], **options)
        with killing(job.get("kill", False)) as killed:
            scope = Scope(moments=job.get("moments", False))
            calibrate_on(job["model"], config, Workers(count, cluster), pace, scope)
            if job.get("kill") and not killed:
                sys.exit("no worker was killed")
    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "pace": pace.seconds_per_sample() if pace.times else 0.0,
        "seconds": time.perf_counter() - started,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
        "bytes": Path(job["output"]).stat().st_size,
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
