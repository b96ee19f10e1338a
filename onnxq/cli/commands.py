"""The commands, their options, and how one is run. `actions` says what each one does.

Only light modules are imported at the top, the others when they are needed. So ``--help`` answers at once,
and an interrupt during an import is caught.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from onnxq.cli import actions, scale
from onnxq.cli.exit_codes import run_guarded
from onnxq.cli.options import Command, HelpFormatter, Parser, parse, told_examples
from onnxq.core.errors import did_you_mean

_CONFIG = {"--config FILE.yaml": "read options from a file; options on the command line take precedence"}
_JSON = {"--json": "print JSON"}
_NO_PROGRESS = {"--quiet": "show no progress"}
_QUIET = {"--quiet": "print warnings and errors only"}
_VERBOSE = {"--verbose": "log each step, and show the traceback of an error"}

_WORKERS = {
    "--workers N": "run on N processes, or workers of --ray; 0: as many as fit",
    "--ray [ADDRESS]": "run on a Ray cluster: at ADDRESS, else RAY_ADDRESS, else a new local one",
    "--cpus-per-worker X": "CPUs of each worker of --ray; default: 1",
    "--gpus-per-worker X": "GPUs of each worker of --ray, with --provider; default: 0",
}

_FIRST = {
    "onnxq quantize model.onnx int8.onnx --data samples/": "quantize, with samples of what the model reads",
    "onnxq compare model.onnx int8.onnx --data samples/": "see what it cost and gained",
    "onnxq doctor": "see what this machine can run and check",
}
"""Examples for those who know no command yet."""


def _for_trials(what: str) -> Mapping[str, str]:
    return {**_WORKERS, "--workers N": f"{what} on N processes, or workers of --ray; 0: as many as fit"}


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
            **_for_trials("--goal ranks quantization points"),
            "--dry-run": "print the plan, with a reason for every node kept in float; write no model",
            **_JSON,
            **_QUIET,
            "--verbose": "log each step, list every node kept in float, and show the traceback of an error",
        },
        act=actions.quantize,
        examples={
            "onnxq quantize model.onnx int8.onnx --data pictures/": "ranges from a folder of pictures",
            "onnxq quantize model.onnx int8.onnx --data samples.npz --report report.html": (
                "from arrays, named after the inputs; a page that shows what was lost where"
            ),
            "onnxq quantize model.onnx int8.onnx --data samples.npz --target tensorrt": "for TensorRT",
            "onnxq quantize model.onnx int8.onnx --data samples.npz --goal 'sqnr>=25'": (
                "with as few nodes in float as this accuracy takes"
            ),
            "onnxq quantize model.onnx int8.onnx --mode dynamic": "without data, for matrices",
        },
    ),
    "requantize": Command(
        help="convert a model that has Q/DQ already for a target; it keeps its scales",
        files={"model": "a model with Q/DQ", "output": "the model to write"},
        groups=("data", "ranges", "plan", "types", "running"),
        flags={
            "--report FILE.html": "also write a report, one HTML file",
            **_JSON,
            **_QUIET,
            **_VERBOSE,
        },
        act=actions.requantize,
    ),
    "calibrate": Command(
        help="collect statistics of the tensors, which give the ranges of every method",
        files={"model": "the float model", "statistics": "the file to write (.npz)"},
        groups=("data", "plan", "running"),
        flags={
            **_CONFIG,
            "--target NAME": "deployment target; default: statistics for all targets",
            "--shard I/N": "count part I of N only; onnxq merge makes one file of the parts",
            **_WORKERS,
            "--with-moments": "keep what corrections need in the file too: channel means, and a bounded "
            "sample of inputs; every fifth of the first samples is held out",
            **_JSON,
            **_QUIET,
            **_VERBOSE,
        },
        act=scale.calibrate,
        idle=("verify",),
    ),
    "merge": Command(
        help="merge the parts of a calibration (calibrate --shard) into the file of one run",
        files={"parts...": "the parts (.npz), in any order", "output": "the file to write (.npz)"},
        groups=(),
        flags={
            "--allow-missing": "merge what there is, and say what is lost",
            **_JSON,
            **_QUIET,
            **_VERBOSE,
        },
        act=scale.merge,
    ),
    "sweep": Command(
        help="quantize many models for many targets with many options; one table and one page",
        files={
            "plan": "the plan (.yaml): models, targets, options",
            "folder": "the folder for what it makes",
        },
        groups=(),
        flags={**_WORKERS, **_JSON, **_QUIET, **_VERBOSE},
        act=scale.sweep,
    ),
    "table": Command(
        help="convert statistics or a table to the table format of another program",
        files={"source": "saved statistics, or a table", "output": "the table to write"},
        groups=("ranges",),
        flags={
            "--format NAME": "tensorrt, ort, ncnn, snpe, qnn, mqbench, mqbench-snpe, mqbench-vitis, "
            "mqbench-ppl, ppq, json; default: by the name of OUTPUT",
            **_JSON,
            **_VERBOSE,
        },
        act=actions.table,
        idle=("weight_method",),
    ),
    "compare": Command(
        help="compare accuracy, size and speed of an int8 model with its float original",
        files={"float": "the float model", "int8": "the quantized model"},
        groups=("data", "metric", "running"),
        flags={**_JSON, **_NO_PROGRESS, **_VERBOSE},
        act=actions.compare,
        idle=("every_element", "verify"),
    ),
    "convert": Command(
        help="convert a model to another float type, float16 by default, without quantization",
        files={"model": "an ONNX model", "output": "the model to write"},
        groups=("types", "data", "running"),
        flags={
            **_JSON,
            **_QUIET,
            "--verbose": "log each step, list every node kept in float32, and show the traceback of an error",
        },
        act=actions.convert,
        idle=("every_element", "verify", "seed"),
        further=("exclude",),
    ),
    "cache": Command(
        help="store a decoder's cache of keys and values in int8; the rest of the model stays as it is",
        files={"model": "a decoder, float or quantized", "output": "the model to write"},
        groups=("data", "running"),
        flags={**_JSON, **_QUIET, **_VERBOSE},
        act=actions.cache,
        idle=("every_element", "verify", "seed"),
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
        act=actions.verify,
        idle=("every_element", "provider", "verify"),
    ),
    "sensitivity": Command(
        help="rank quantization points by the error that each causes at the outputs",
        files={"model": "the float model"},
        groups=("data", "ranges", "accuracy", "metric", "plan", "running"),
        flags={**_CONFIG, **_for_trials("rank"), **_JSON, **_NO_PROGRESS, **_VERBOSE},
        act=actions.sensitivity,
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
            **_JSON,
            **_QUIET,
            **_VERBOSE,
        },
        act=actions.export,
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
        act=actions.inspect,
    ),
    "doctor": Command(
        help="show versions, processor and runtimes, and which targets can be checked on this machine",
        files={},
        groups=(),
        flags={**_JSON, **_VERBOSE},
        act=actions.doctor,
    ),
    "completion": Command(
        help="print a script that lets a shell complete commands, options and their values",
        files={"shell": "bash, zsh or fish"},
        groups=(),
        flags=_VERBOSE,
        act=actions.completion,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``onnxq`` command and return the exit code (0 done, 1 failed, 2 wrong usage).

    It is also what a shell runs to complete a command; then it offers what may follow.
    """
    if "_ARGCOMPLETE" in os.environ:
        return run_guarded(_complete, argv)
    return run_guarded(_choose, argv)


def quantize(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m onnxq.quantize``, which does the same as ``onnxq quantize``."""
    return run_guarded(partial(_run, "quantize", prog="python -m onnxq.quantize"), argv)


def _complete(arguments: Sequence[str]) -> None:
    from onnxq.cli.completion import answer

    answer(_COMMANDS)


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
        epilog=f"commands:\n{listing}\n\n{told_examples(_FIRST)}\n\n"
        "'onnxq COMMAND --help' shows a command's options.",
        formatter_class=HelpFormatter,
    )
    version = f"onnxq {actions.installed_version()}" if "--version" in arguments else ""
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    if not arguments:
        parser.print_help()
        return
    name = parser.parse_known_args(arguments)[0].command
    near = did_you_mean(name, _COMMANDS)
    parser.error(f"unknown command {name!r}; valid commands: {', '.join(_COMMANDS)}{near}")


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
    with suppress(OSError, AttributeError, TypeError):  # other C libraries; Windows has no CDLL(None)
        ctypes.CDLL(None).mallopt(pools, 2)
