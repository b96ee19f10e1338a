"""What each command does: call the pipeline, and show the result. There is no logic here.

Modules are imported when they are needed, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.cli import scale
from onnxq.cli.exit_codes import close_output
from onnxq.cli.interrupts import INTERRUPTS
from onnxq.core.errors import ConfigError

if TYPE_CHECKING:
    from onnxq.core.config import QuantConfig

logger = logging.getLogger(__name__)

_WRITTEN = ("save_statistics", "search_log", "table", "report")
"""Options that name files to write."""


def quantize(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq quantize``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.graph.files import written_together
    from onnxq.pipelines import preflight, static
    from onnxq.pipelines.dynamic import pipeline
    from onnxq.pipelines.inspection import of_plan, planned
    from onnxq.pipelines.weight_only import quantize_weights
    from onnxq.pipelines.weight_only.default_mode import with_mode

    config = with_mode(args.model, config)
    executor = scale.executor(args, config)
    if executor is not None and (config.goal is None or config.mode != "static" or args.dry_run):
        raise ConfigError(
            "--workers and --ray share out the search for a goal: they need --goal, in mode static, and no "
            "dry run. To share out the calibration, run onnxq calibrate, then quantize with --from-table"
        )
    if args.save_config:
        preflight.check_files(args.model, args.output, config.data, config, [args.save_config])
    if args.dry_run:
        found = of_plan(args.model, *planned(args.model, config))
        if args.json:
            as_json.print_inspection(found)
        elif not args.quiet:
            render.show_inspection(found, every_group=True)
        _tell_unwritten(config)
        if args.save_config:
            config.save(Path(args.save_config))
        return
    modes = {"dynamic": pipeline.quantize_dynamic, "weight-only": quantize_weights}
    quantize = modes.get(config.mode, partial(static.quantize_static, executor=executor))
    with written_together(INTERRUPTS.finish), terminal.progress(quiet=args.quiet) as progress:
        result = quantize(args.model, args.output, config=config, progress=progress)
        if args.save_config:
            result.repeatable.save(Path(args.save_config))
    with suppress(OSError, KeyboardInterrupt):  # the model is written: a failure to print is no failure
        if args.json:
            as_json.print_result(result)
        else:
            render.show_result(args.output, result, quiet=args.quiet, every_node=args.verbose)
    close_output()


def _tell_unwritten(config: QuantConfig) -> None:
    """Warn about the files that were asked for, but that a dry run does not write."""
    given = ", ".join(f"--{name.replace('_', '-')}" for name in _WRITTEN if getattr(config, name))
    if given:
        logger.warning("a dry run writes no model, so also not: %s", given)


def requantize(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq requantize``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.graph.files import written_together
    from onnxq.pipelines.requantize import requantize

    config = config.model_copy(update={"report": args.report and Path(args.report)})
    with written_together(INTERRUPTS.finish), terminal.progress(quiet=args.quiet) as progress:
        result = requantize(args.model, args.output, config=config, progress=progress)
    with suppress(OSError, KeyboardInterrupt):
        if args.json:
            as_json.print_result(result)
        else:
            render.show_result(args.output, result, quiet=args.quiet, every_node=args.verbose)
    close_output()


def table(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq table``."""
    from onnxq.graph.files import written_together
    from onnxq.pipelines.conversions import convert_table

    with written_together(INTERRUPTS.finish):
        table = convert_table.convert(Path(args.source), Path(args.output), args.format, config)
    if args.json:
        from onnxq.cli.tables import as_json

        as_json.print_facts(
            source=args.source,
            output=args.output,
            activations=table.activations,
            weights=table.weights,
        )


def compare(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq compare``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.pipelines import compare

    with terminal.progress(quiet=args.quiet) as progress:
        quality, speed = compare.compare_files(args.float, args.int8, config, progress)
    if args.json:
        as_json.print_comparison((args.float, args.int8), quality, speed, config.threads or 1)
    else:
        render.show_comparison(args.float, args.int8, quality, speed, config.threads or 1)


def convert(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq convert``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.graph.files import written_together
    from onnxq.pipelines.conversions import convert

    with written_together(INTERRUPTS.finish), terminal.progress(quiet=args.quiet) as progress:
        result = convert.convert(args.model, args.output, config=config, progress=progress)
    with suppress(OSError, KeyboardInterrupt):
        if args.json:
            as_json.print_conversion(args.model, args.output, result)
        else:
            render.show_conversion(args.output, result, quiet=args.quiet, every_node=args.verbose)
    close_output()


def cache(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq cache``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.graph.files import written_together
    from onnxq.pipelines.conversions.cache import quantize_cache

    with written_together(INTERRUPTS.finish), terminal.progress(quiet=args.quiet) as progress:
        result = quantize_cache(args.model, args.output, config=config, progress=progress)
    with suppress(OSError, KeyboardInterrupt):
        if args.json:
            as_json.print_conversion(args.model, args.output, result)
        else:
            render.show_cache(args.output, result, quiet=args.quiet)
    close_output()


def inspect(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq inspect``."""
    from onnxq.cli.tables import as_json, render
    from onnxq.pipelines.inspection import inspect
    from onnxq.pipelines.weight_only.default_mode import with_mode

    found = inspect(args.model, with_mode(args.model, config))
    if args.json:
        as_json.print_inspection(found)
    else:
        render.show_inspection(found, every_group=args.verbose)


def sensitivity(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq sensitivity``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.pipelines import sensitivity

    with terminal.progress(quiet=args.quiet) as progress:
        found = sensitivity.rank(args.model, config, progress, scale.executor(args, config))
    if args.json:
        as_json.print_ranking(found)
    else:
        render.show_ranking(args.model, found)


def verify(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq verify``."""
    from onnxq.cli import terminal
    from onnxq.cli.tables import as_json, render
    from onnxq.core.errors import ModelError
    from onnxq.pipelines import verify

    if args.target is not None:
        config = config.model_copy(update={"target": args.target})
    with terminal.progress(quiet=args.quiet) as progress:
        verdicts = verify.verify_file(args.model, config, progress)
    if args.json:
        as_json.print_verdicts(verdicts)
    else:
        render.show_verdicts(args.model, config.target, verdicts, every_node=args.verbose)
    if failed := [verdict.runtime for verdict in verdicts if verdict.status == "failed"]:
        raise ModelError(f"{args.model} does not suit {config.target}: {', '.join(failed)} failed")


def export(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq export``."""
    from onnxq.cli.tables import as_json, render
    from onnxq.graph.files import written_together
    from onnxq.torch import export_made

    with written_together(INTERRUPTS.finish):
        exported = export_made(args.factory, args.output, args.shape, dynamic_batch=not args.fixed_batch)
    if args.json:
        as_json.print_facts(
            output=exported.path, inputs=exported.inputs, outputs=exported.outputs, sqnr=exported.sqnr
        )
    elif not args.quiet:
        render.show_export(exported.path, exported.inputs, exported.outputs, exported.sqnr)


def doctor(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq doctor``."""
    from onnxq.cli import doctor

    doctor.show(installed_version(), as_json=args.json)


def completion(args: argparse.Namespace, config: QuantConfig) -> None:
    """Run ``onnxq completion``."""
    import sys

    from onnxq.cli import completion

    sys.stdout.write(completion.script(args.shell))


def installed_version() -> str:
    """Look up the version of onnxq, which takes a while."""
    from importlib.metadata import version

    return version("onnxq")
