"""The commands for more than one process: a calibration, or a part of it, and the merging of parts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.cli.interrupts import INTERRUPTS

if TYPE_CHECKING:
    from onnxq.core.config import QuantConfig


def calibrate(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq calibrate``."""
    from time import perf_counter

    from onnxq.calibration.shards import Scope, Shard
    from onnxq.cli import render, terminal
    from onnxq.core.unused import CALIBRATE, without
    from onnxq.pipelines import calibrate

    started = perf_counter()
    target = {} if args.target is None else {"target": args.target}
    config = without(config, CALIBRATE)  # a file of options may serve other commands too
    config = config.model_copy(update={"save_statistics": Path(args.statistics), **target})
    scope = Scope(args.shard and Shard.parse(args.shard), args.with_moments)
    with terminal.progress(quiet=args.quiet) as progress:
        statistics = calibrate.calibrate(args.model, None, config, progress, scope)
    INTERRUPTS.finish()
    if not args.quiet:
        seconds = perf_counter() - started
        render.show_statistics(args.model, args.statistics, statistics, seconds, every_tensor=args.verbose)


def merge(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq merge``."""
    from time import perf_counter

    from onnxq.cli import render, terminal
    from onnxq.pipelines import calibrate

    started = perf_counter()
    with terminal.progress(quiet=args.quiet) as progress:
        statistics = calibrate.merge(
            args.parts, args.output, allow_missing=args.allow_missing, progress=progress
        )
    INTERRUPTS.finish()
    if not args.quiet:
        seconds = perf_counter() - started
        render.show_statistics("MODEL", args.output, statistics, seconds, every_tensor=args.verbose)
