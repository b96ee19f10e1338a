"""The commands for more than one process, and the options that say which processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from onnxq.cli.interrupts import INTERRUPTS
from onnxq.core.errors import ConfigError

if TYPE_CHECKING:
    from onnxq.core.config import QuantConfig
    from onnxq.core.parallel import Executor
    from onnxq.distributed.worker_pool import Workers

_Number = TypeVar("_Number", int, float)


def calibrate(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq calibrate``."""
    from time import perf_counter

    from onnxq.calibration.shards import Scope, Shard
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.core.unused import CALIBRATE, without
    from onnxq.pipelines import calibrate

    started = perf_counter()
    target = {} if args.target is None else {"target": args.target}
    config = without(config, CALIBRATE)  # a file of options may serve other commands too
    config = config.model_copy(update={"save_statistics": Path(args.statistics), **target})
    scope = Scope(args.shard and Shard.parse(args.shard), args.with_moments)
    workers = _workers(args)
    with terminal.progress(quiet=args.quiet) as progress:
        if workers is None:
            statistics = calibrate.calibrate(args.model, None, config, progress, scope)
        else:
            from onnxq.distributed.calibration_run import calibrate_on

            statistics = calibrate_on(args.model, config, workers, progress, scope)
    INTERRUPTS.finish()
    seconds = perf_counter() - started
    if args.json:
        as_json.print_statistics(args.model, args.statistics, statistics, seconds)
    elif not args.quiet:
        render.show_statistics(args.model, args.statistics, statistics, seconds, every_tensor=args.verbose)


def _workers(args: argparse.Namespace) -> Workers | None:
    """Read the options for several workers; None if none is given."""
    count = None if args.workers is None else _number("--workers", args.workers, int)
    cpus = None if args.cpus_per_worker is None else _number("--cpus-per-worker", args.cpus_per_worker, float)
    gpus = None if args.gpus_per_worker is None else _number("--gpus-per-worker", args.gpus_per_worker, float)
    if args.ray is None:
        if cpus is not None or gpus is not None:
            raise ConfigError("--cpus-per-worker and --gpus-per-worker are for --ray: give it too")
        if count is None:
            return None
    from onnxq.distributed.ray_actors import Cluster
    from onnxq.distributed.worker_pool import Workers

    if args.ray is None:
        return Workers(count or 0)
    size = (1.0 if cpus is None else cpus, gpus or 0.0)
    return Workers(cluster=Cluster(args.ray, count or 0, *size))


def executor(args: argparse.Namespace, config: QuantConfig) -> Executor | None:
    """Return the workers that rank quantization points; None if none are asked for."""
    workers = _workers(args)
    if workers is None:
        return None
    from onnxq.distributed.worker_executor import WorkerExecutor

    return WorkerExecutor(workers, config.threads)


def _number(flag: str, text: str, kind: Callable[[str], _Number]) -> _Number:
    try:
        value = kind(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: expected a number") from error
    if not 0 <= value < 1e6:
        raise ConfigError(f"{flag} {text}: expected a number from 0 to a million")
    return value


def merge(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq merge``."""
    from time import perf_counter

    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.pipelines import calibrate

    started = perf_counter()
    with terminal.progress(quiet=args.quiet) as progress:
        statistics = calibrate.merge(
            args.parts, args.output, allow_missing=args.allow_missing, progress=progress
        )
    INTERRUPTS.finish()
    seconds = perf_counter() - started
    if args.json:
        as_json.print_statistics("", args.output, statistics, seconds)
    elif not args.quiet:
        render.show_statistics("MODEL", args.output, statistics, seconds, every_tensor=args.verbose)


def sweep(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq sweep``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables.as_json import print_rows
    from onnxq.cli.tables.sweep_table import show_sweep
    from onnxq.distributed.sweeping import sweep

    with terminal.progress(quiet=args.quiet) as progress:
        result = sweep(Path(args.plan), Path(args.folder), _workers(args), progress)
    INTERRUPTS.finish()
    if args.json:
        print_rows(result.rows, str(result.page))
    elif not args.quiet:
        show_sweep(result.rows, str(result.page), result.resumed)
