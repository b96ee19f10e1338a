"""Make one model of a sweep. Each job is a process of its own, so that none can end another."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrators.atomic import staged
from onnxq.core.config import QuantConfig
from onnxq.core.errors import OnnxqError
from onnxq.distributed.sweep_plan import SweepJob

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""What is known of a job: its name, and its figures or the error."""

MOST_TEXT = 2000
"""The longest text of an error that is kept."""


def known(job: SweepJob) -> Row | None:
    """Return the row of a job that is done, and whose model is there; None otherwise."""
    try:
        row = json.loads(job.result.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    done = isinstance(row, dict) and row.get("key") == job.key and "error" not in row
    return row if done and Path(job.output).exists() else None


def make(job: SweepJob) -> Row:
    """Make the model and write its row; an error becomes a row too."""
    started = time.perf_counter()
    try:
        figures = _figures(job)
    except OnnxqError as error:
        figures = {"error": str(error)[:MOST_TEXT]}
    except Exception as error:
        logger.exception("%s failed", job.name)
        figures = {"error": f"{type(error).__name__}: {error}"[:MOST_TEXT]}
    row = {"name": job.name, "key": job.key, **figures, "seconds": time.perf_counter() - started}
    write_row(job, row)
    return row


def write_row(job: SweepJob, row: Row) -> None:
    """Write what is known of a job."""
    job.result.parent.mkdir(parents=True, exist_ok=True)
    with staged([job.result]) as beside:
        beside[job.result].write_text(json.dumps(row), "utf-8")


def _figures(job: SweepJob) -> dict[str, Any]:
    from onnxq.pipelines.dynamic.pipeline import quantize_dynamic
    from onnxq.pipelines.static import quantize_static
    from onnxq.pipelines.weight_only import quantize_weights

    Path(job.output).parent.mkdir(parents=True, exist_ok=True)
    config = QuantConfig(**job.options)
    modes: dict[str, Any] = {"dynamic": quantize_dynamic, "weight-only": quantize_weights}
    result = modes.get(config.mode, quantize_static)(job.model, job.output, config=config)
    quality, speed = result.quality, result.speed
    return {
        "sqnr": _finite(quality and quality.sqnr),
        "agreement": _finite(quality and quality.agreement),
        "judged_on": result.judged_on,
        "bytes": result.int8_bytes,
        "float_bytes": result.float_bytes,
        "milliseconds": _finite(speed and 1e3 * speed.int8_seconds),
        "float_milliseconds": _finite(speed and 1e3 * speed.float_seconds),
        "corrections": [one.name for one in result.corrections if one.kept],
        "warnings": list(result.warnings),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def make_apart(job: SweepJob) -> Row:
    """Make the model in another process of this machine; one that dies becomes a row with an error."""
    command = [sys.executable, "-m", "onnxq.distributed.sweep_job"]
    done = subprocess.run(command, input=job.dumps(), text=True, capture_output=True, check=False)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode in (-2, 130):
        raise KeyboardInterrupt
    tail = (done.stderr or "").strip()[-MOST_TEXT:]
    row = {"name": job.name, "key": job.key, "error": f"the process ended with {done.returncode}: {tail}"}
    write_row(job, row)
    return row


def main() -> None:
    """Make the job on standard input, and write its row to standard output."""
    row = make(SweepJob.loads(sys.stdin.read()))
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
