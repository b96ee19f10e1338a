"""Turn command-line arguments into a `QuantConfig` and call the pipeline. There is no logic here.

Only light modules are imported at the top, the others when they are needed. So ``--help`` answers at once,
and an interrupt during an import is caught.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.cli.exit_codes import close_output, run_guarded
from onnxq.cli.interrupts import INTERRUPTS
from onnxq.cli.options import Command, Parser, parse

if TYPE_CHECKING:
    from onnxq.core.config import QuantConfig

logger = logging.getLogger(__name__)


def _quantize(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render, terminal
    from onnxq.graph.files import written_together
    from onnxq.pipelines import preflight, static
    from onnxq.pipelines.dynamic import pipeline
    from onnxq.pipelines.inspection import of_plan, planned
    from onnxq.pipelines.weight_only import quantize_weights

    if args.dry_run:
        found = of_plan(args.model, *planned(args.model, config))
        if not args.quiet:
            render.show_inspection(found, every_group=True)
        _tell_unwritten(args.save_config, config)
        return
    if args.save_config:
        preflight.check_files(args.model, args.output, config.data, config, [args.save_config])
    modes = {"dynamic": pipeline.quantize_dynamic, "weight-only": quantize_weights}
    quantize = modes.get(config.mode, static.quantize_static)
    with written_together(INTERRUPTS.finish), terminal.progress(quiet=args.quiet) as progress:
        result = quantize(args.model, args.output, config=config, progress=progress)
        if args.save_config:
            result.repeatable.save(Path(args.save_config))
    with suppress(OSError, KeyboardInterrupt):  # the model is written: a failure to print is no failure
        render.show_result(args.output, result, quiet=args.quiet, every_node=args.verbose)
    close_output()


def _tell_unwritten(save_config: str | None, config: QuantConfig) -> None:
    """Warn about the files that were asked for, but that a dry run does not write."""
    files = {"save_config": save_config, **{name: getattr(config, name) for name in _WRITTEN}}
    given = ", ".join(f"--{name.replace('_', '-')}" for name, file in files.items() if file)
    if given:
        logger.warning("a dry run writes nothing, so also not: %s", given)


def _requantize(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render, terminal
    from onnxq.graph.files import written_together
    from onnxq.pipelines.requantize import requantize

    config = config.model_copy(update={"report": args.report and Path(args.report)})
    with written_together(INTERRUPTS.finish), terminal.progress(quiet=args.quiet) as progress:
        result = requantize(args.model, args.output, config=config, progress=progress)
    with suppress(OSError, KeyboardInterrupt):
        render.show_result(args.output, result, quiet=args.quiet, every_node=args.verbose)
    close_output()


def _calibrate(args: argparse.Namespace, config: QuantConfig) -> None:
    from time import perf_counter

    from onnxq.cli import render, terminal
    from onnxq.core.unused import CALIBRATE, without
    from onnxq.pipelines import calibrate

    started = perf_counter()
    target = {} if args.target is None else {"target": args.target}
    config = without(config, CALIBRATE)  # a file of options may serve other commands too
    config = config.model_copy(update={"save_statistics": Path(args.statistics), **target})
    with terminal.progress(quiet=args.quiet) as progress:
        statistics = calibrate.calibrate(args.model, config=config, progress=progress)
    INTERRUPTS.finish()
    if not args.quiet:
        seconds = perf_counter() - started
        render.show_statistics(args.model, args.statistics, statistics, seconds, every_tensor=args.verbose)


def _table(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.graph.files import written_together
    from onnxq.pipelines import convert_table

    with written_together(INTERRUPTS.finish):
        convert_table.convert(Path(args.source), Path(args.output), args.format, config)


def _compare(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render, terminal
    from onnxq.pipelines import compare

    with terminal.progress(quiet=args.quiet) as progress:
        quality, speed = compare.compare_files(args.float, args.int8, config, progress)
    render.show_comparison(args.float, args.int8, quality, speed, config.threads or 1)


def _convert(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render, terminal
    from onnxq.graph.files import written_together
    from onnxq.pipelines import convert

    with written_together(INTERRUPTS.finish), terminal.progress(quiet=args.quiet) as progress:
        result = convert.convert(args.model, args.output, config=config, progress=progress)
    with suppress(OSError, KeyboardInterrupt):
        render.show_conversion(args.output, result, quiet=args.quiet, every_node=args.verbose)
    close_output()


def _inspect(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render
    from onnxq.pipelines.inspection import inspect

    found = inspect(args.model, config)
    if args.json:
        render.print_inspection(found)
    else:
        render.show_inspection(found, every_group=args.verbose)


def _sensitivity(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render, terminal
    from onnxq.pipelines import sensitivity

    with terminal.progress(quiet=args.quiet) as progress:
        found = sensitivity.rank(args.model, config, progress)
    if args.json:
        render.print_ranking(found)
    else:
        render.show_ranking(args.model, found)


def _verify(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render, terminal
    from onnxq.core.errors import ModelError
    from onnxq.pipelines import verify

    if args.target is not None:
        config = config.model_copy(update={"target": args.target})
    with terminal.progress(quiet=args.quiet) as progress:
        verdicts = verify.verify_file(args.model, config, progress)
    if args.json:
        render.print_verdicts(verdicts)
    else:
        render.show_verdicts(args.model, config.target, verdicts, every_node=args.verbose)
    if failed := [verdict.runtime for verdict in verdicts if verdict.status == "failed"]:
        raise ModelError(f"{args.model} does not suit {config.target}: {', '.join(failed)} failed")


def _export(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq.cli import render
    from onnxq.graph.files import written_together
    from onnxq.torch import export_made

    with written_together(INTERRUPTS.finish):
        exported = export_made(args.factory, args.output, args.shape, dynamic_batch=not args.fixed_batch)
    if not args.quiet:
        render.show_export(exported.path, exported.inputs, exported.outputs, exported.sqnr)


_WRITTEN = ("save_statistics", "search_log", "table", "report")
"""Options that name files to write."""

_CONFIG = {"--config FILE.yaml": "read options from a file; options on the command line take precedence"}
_JSON = {"--json": "print JSON"}
_NO_PROGRESS = {"--quiet": "show no progress"}
_QUIET = {"--quiet": "print warnings and errors only"}
_VERBOSE = {"--verbose": "log each step, and show the traceback of an error"}

_COMMANDS: Mapping[str, Command] = {
    "quantize": Command(
        help="turn a float ONNX model into an int8 one",
        files={"model": "the float model", "output": "the int8 model to write"},
        groups=(
            "mode",
            "data",
            "ranges",
            "accuracy",
            "metric",
            "goal",
            "speed",
            "tables",
            "plan",
            "types",
            "running",
        ),
        flags={
            **_CONFIG,
            "--save-config FILE.yaml": "write the options used",
            "--dry-run": "print the plan, with a reason for every node kept in float; write nothing",
            **_QUIET,
            "--verbose": "log each step, list every node kept in float, and show the traceback of an error",
        },
        act=_quantize,
    ),
    "requantize": Command(
        help="convert a model that has Q/DQ already for a target; it keeps its scales",
        files={"model": "a model with Q/DQ", "output": "the model to write"},
        groups=("data", "ranges", "plan", "types", "running"),
        flags={
            "--report FILE.html": "also write a report, one HTML file",
            **_QUIET,
            **_VERBOSE,
        },
        act=_requantize,
    ),
    "calibrate": Command(
        help="collect statistics of the tensors, which give the ranges of every method",
        files={"model": "the float model", "statistics": "the file to write (.npz)"},
        groups=("data", "plan", "running"),
        flags={
            **_CONFIG,
            "--target NAME": "deployment target; default: statistics for all targets",
            **_QUIET,
            **_VERBOSE,
        },
        act=_calibrate,
        idle=("verify",),
    ),
    "table": Command(
        help="convert statistics or a table to the table format of another program",
        files={"source": "saved statistics, or a table", "output": "the table to write"},
        groups=("ranges",),
        flags={
            "--format NAME": "tensorrt, ort, ncnn, snpe, qnn, mqbench, mqbench-snpe, mqbench-vitis, "
            "mqbench-ppl, ppq, json; default: by the name of OUTPUT",
            **_VERBOSE,
        },
        act=_table,
        idle=("weight_method",),
    ),
    "compare": Command(
        help="compare accuracy, size and speed of an int8 model with its float original",
        files={"float": "the float model", "int8": "the quantized model"},
        groups=("data", "metric", "running"),
        flags={**_NO_PROGRESS, **_VERBOSE},
        act=_compare,
        idle=("every_element", "verify"),
    ),
    "convert": Command(
        help="convert a model to another float type, float16 by default, without quantization",
        files={"model": "an ONNX model", "output": "the model to write"},
        groups=("types", "data", "running"),
        flags={
            **_QUIET,
            "--verbose": "log each step, list every node kept in float32, and show the traceback of an error",
        },
        act=_convert,
        idle=("every_element", "verify", "seed"),
        further=("exclude",),
    ),
    "verify": Command(
        help="check a quantized model against the rules and the runtimes of a target",
        files={"model": "the quantized model (Q/DQ), of any origin"},
        groups=("data", "running"),
        flags={
            "--target NAME": "the deployment target; default: onnxruntime",
            **_JSON,
            **_NO_PROGRESS,
            **_VERBOSE,
        },
        act=_verify,
        idle=("every_element", "provider", "verify"),
    ),
    "sensitivity": Command(
        help="rank quantization points by the error that each causes at the outputs",
        files={"model": "the float model"},
        groups=("data", "ranges", "accuracy", "metric", "plan", "running"),
        flags={**_CONFIG, **_JSON, **_NO_PROGRESS, **_VERBOSE},
        act=_sensitivity,
        idle=("verify",),
    ),
    "export": Command(
        help="export a PyTorch module to a float ONNX model, checked against the module",
        files={
            "factory": "package.module:function or file.py:function that returns a module, or a module and "
            "its example inputs",
            "output": "the ONNX model to write",
        },
        groups=(),
        flags={
            "--shape SIZES": "shape of the only float input, like 1,3,224,224, if the function returns no "
            "example",
            "--fixed-batch": "keep the batch size of the example",
            **_QUIET,
            **_VERBOSE,
        },
        act=_export,
    ),
    "inspect": Command(
        help="show which nodes would be quantized and why the others would not, or which are quantized",
        files={"model": "the float model, or one that has Q/DQ"},
        groups=("mode", "plan", "types"),
        flags={
            **_CONFIG,
            **_JSON,
            "--verbose": "print every group, also repeated ones, and show the traceback of an error",
        },
        act=_inspect,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``onnxq`` command and return the exit code (0 done, 1 failed, 2 wrong usage)."""
    return run_guarded(_choose, argv)


def quantize(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m onnxq.quantize``, which does the same as ``onnxq quantize``."""
    return run_guarded(partial(_run, "quantize", prog="python -m onnxq.quantize"), argv)


def _choose(arguments: Sequence[str]) -> None:
    """Run the subcommand that the first argument names."""
    if arguments and arguments[0] in _COMMANDS:
        _run(arguments[0], arguments[1:], prog=f"onnxq {arguments[0]}")
        return
    listing = "\n".join(f"  {name:<12}{command.help}" for name, command in _COMMANDS.items())
    parser = Parser(
        prog="onnxq",
        usage="onnxq COMMAND ...",
        description="Quantize ONNX models to int8.",
        epilog=f"commands:\n{listing}\n\n'onnxq COMMAND --help' shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"onnxq {_version()}" if "--version" in arguments else ""  # looking it up takes a while
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="what to do, see below")
    if arguments:
        parser.parse_args(arguments)
    else:
        parser.print_help()


def _run(name: str, arguments: Sequence[str], prog: str) -> None:
    command = _COMMANDS[name]
    args, config = parse(command, arguments, prog)
    _share_memory_pools()
    from onnxq.cli import terminal

    with terminal.messages(verbose=args.verbose):
        command.act(args, config)


def _share_memory_pools() -> None:
    """Let all threads share two pools of memory, where glibc would give each one its own and keep them."""
    pools = -8  # M_ARENA_MAX in malloc.h
    with suppress(OSError, AttributeError):  # other C libraries
        ctypes.CDLL(None).mallopt(pools, 2)


def _version() -> str:
    from importlib.metadata import version

    return version("onnxq")
