"""The command line: arguments -> `QuantConfig` -> the pipeline. No logic of its own.

Options are read off `QuantConfig`. On top stand only light imports, the rest comes when it is needed:
so ``--help`` answers at once, and an interrupt is caught wherever it hits.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

import calibrators.errors
from onnxq.errors import ConfigError, OnnxqError, TargetError

if TYPE_CHECKING:
    from onnxq.config import QuantConfig

DONE, FAILED, WRONG_USAGE = 0, 1, 2

_HEADINGS: Mapping[str, str] = {
    "data": "data",
    "ranges": "ranges",
    "plan": "what is quantized, and for what",
    "running": "running",
}
"""The groups of options in `QuantConfig`, as the help calls them."""


@dataclass(frozen=True)
class _Command:
    """A subcommand.

    Attributes:
        help: one line.
        files: its positional arguments, name -> help.
        groups: the groups of `QuantConfig`'s options that make sense for it.
        flags: its own switches, flag -> help; those that take a value name it after a blank.
        act: does it.
    """

    help: str
    files: Mapping[str, str]
    groups: tuple[str, ...]
    flags: Mapping[str, str]
    act: Callable[[argparse.Namespace, QuantConfig], None]


def _quantize(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq import display, guards, pipeline

    if args.dry_run:
        display.show_plan(args.model, pipeline.prepare(args.model, config)[1], quiet=args.quiet)
        return
    if args.save_config:
        others = (args.model, args.output, config.data, config.from_table, config.save_statistics)
        guards.check_places(others, [args.save_config])
    with display.progress(quiet=args.quiet) as progress:
        result = pipeline.quantize_static(args.model, args.output, config=config, progress=progress)
    if args.save_config:
        config.save(Path(args.save_config))
    with suppress(OSError, KeyboardInterrupt):  # the model is written: to tell of it cannot fail any more
        display.show_result(args.output, result, quiet=args.quiet, every_node=args.verbose)
    _let_go_of_stdout()


def _compare(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq import compare, display

    with display.progress(quiet=args.quiet) as progress:
        quality, speed = compare.compare_files(args.float, args.int8, config, progress)
    display.show_comparison(args.float, args.int8, quality, speed, config.threads or 1)


def _inspect(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq import display, pipeline

    plan = pipeline.prepare(args.model, config)[1]
    if args.json:
        display.print_json(plan)
    else:
        display.show_plan(args.model, plan)


_VERBOSE = {"--verbose": "say what each step does, and all that is known of an error"}

_COMMANDS: Mapping[str, _Command] = {
    "quantize": _Command(
        help="turn a float ONNX model into an int8 one",
        files={"model": "the float model", "output": "the int8 model to write"},
        groups=("data", "ranges", "plan", "running"),
        flags={
            "--config FILE.yaml": "read options from a file; those given here win",
            "--save-config FILE.yaml": "write the options used",
            "--dry-run": "print the plan, with a reason for every node that stays float; write nothing",
            "--quiet": "print warnings and errors only",
            "--verbose": "say what each step does, list every node that stays float, "
            "and tell all that is known of an error",
        },
        act=_quantize,
    ),
    "compare": _Command(
        help="accuracy, size and speed of an int8 model against its float original",
        files={"float": "the float model", "int8": "the quantized model"},
        groups=("data", "running"),
        flags={"--quiet": "show no progress", **_VERBOSE},
        act=_compare,
    ),
    "inspect": _Command(
        help="what would be quantized, and why the rest would not",
        files={"model": "the float model"},
        groups=("plan",),
        flags={"--json": "machine-readable", **_VERBOSE},
        act=_inspect,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The ``onnxq`` command; returns the exit code (0 done, 1 failed, 2 wrong usage)."""
    return _guarded(_choose, argv)


def quantize(argv: Sequence[str] | None = None) -> int:
    """``python -m onnxq.quantize``: the same as ``onnxq quantize``."""
    return _guarded(partial(_run, "quantize", prog="python -m onnxq.quantize"), argv)


def _choose(arguments: Sequence[str]) -> None:
    """Run the subcommand that comes first."""
    if arguments and arguments[0] in _COMMANDS:
        _run(arguments[0], arguments[1:], prog=f"onnxq {arguments[0]}")
        return
    listing = "\n".join(f"  {name:<12}{command.help}" for name, command in _COMMANDS.items())
    parser = _Parser(
        prog="onnxq",
        usage="onnxq COMMAND ...",
        description="Quantize ONNX models to int8.",
        epilog=f"commands:\n{listing}\n\n'onnxq COMMAND --help' tells a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"onnxq {_version()}" if "--version" in arguments else ""  # it takes a while to look up
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="what to do, see below")
    if arguments:
        parser.parse_args(arguments)
    else:
        parser.print_help()


def _run(name: str, arguments: Sequence[str], prog: str) -> None:
    command = _COMMANDS[name]
    parser = _parser(command, prog)
    args, rest = parser.parse_known_args(arguments)
    if rest:
        parser.error(_unknown(rest, command))
    config = _config(args, command, parser)
    from onnxq import display

    with display.messages(verbose=args.verbose):
        command.act(args, config)


def _config(args: argparse.Namespace, command: _Command, parser: argparse.ArgumentParser) -> QuantConfig:
    from pydantic import ValidationError

    from onnxq.config import QuantConfig, explain

    given = {name: getattr(args, name) for name in _options(command) if hasattr(args, name)}
    file = getattr(args, "config", None)
    try:
        return QuantConfig(**given) if file is None else QuantConfig.load(Path(file), **given)
    except ConfigError as error:
        cause = error.__cause__
        parser.error(explain(cause, spell=_flag) if isinstance(cause, ValidationError) else str(error))


# --- What can go wrong --------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, like every other error, instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"error: {_one_line(message)} (see: {self.prog} --help)\n")


class _Interrupted(KeyboardInterrupt):
    """Not quite Python's own: having met that one at a bad moment, Python dies of it at exit all the same."""


class _Interrupts:
    """In the ``with`` block Ctrl-C and a request to end raise `_Interrupted`, afterwards they are ignored.

    ``seen`` remembers it: a library that is interrupted while it is imported may raise an error of its own.
    """

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> None:
        self._handle(self._raise)

    def __exit__(self, *_: object) -> None:
        self._handle(signal.SIG_IGN)

    def _raise(self, *_: object) -> NoReturn:
        self.seen = True
        raise _Interrupted

    @staticmethod
    def _handle(handler: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def _guarded(action: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Every way to end, as the exit code that is promised; what went wrong is one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    interrupts = _Interrupts()
    try:
        with interrupts if argv is None else nullcontext():  # only if the process is ours
            action(arguments)
            _flush()
    except SystemExit as end:  # argparse has said what there is to say
        return end.code if isinstance(end.code, int) else DONE
    except BrokenPipeError:  # whoever reads has seen enough
        return DONE
    except KeyboardInterrupt:
        return _fail("interrupted")
    except Exception as error:  # noqa: BLE001
        return _fail("interrupted") if interrupts.seen else _failed(error, verbose="--verbose" in arguments)
    finally:
        _let_go_of_stdout()
    return DONE


def _failed(error: Exception, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(error)
    return _fail(_describe(error), WRONG_USAGE if isinstance(error, ConfigError | TargetError) else FAILED)


def _fail(message: str, code: int = FAILED) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def _describe(error: Exception) -> str:
    if isinstance(error, OnnxqError | calibrators.errors.CalibrationError):
        return str(error)
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)
    if isinstance(error, MemoryError):
        return "out of memory: a smaller --batch-size needs less"
    return (
        f"this is a bug in onnxq, please report it ({type(error).__name__}: {error}); "
        "the same command with --verbose shows where it happened"
    )


def _one_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def _let_go_of_stdout() -> None:
    """What is still to be printed and cannot be is dropped: Python would complain of it at exit."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush() -> None:
    print(end="", flush=True)  # not stdout.flush(): there may be no stdout


def _unknown(rest: Sequence[str], command: _Command) -> str:
    """What to say of arguments that nobody took."""
    options = [argument.split("=")[0] for argument in rest if argument.startswith("-")]
    if not options:
        return f"unexpected argument {rest[0]!r}; expected {' '.join(command.files).upper()} and options"
    valid = [*map(_flag, _options(command)), *(flag.split()[0] for flag in command.flags)]
    return f"unknown option {options[0]}; valid options: {', '.join(valid)}"


# --- Options ------------------------------------------------------------------------------------


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _options(command: _Command, *, group: str | None = None) -> list[str]:
    """The fields of `QuantConfig` that a command takes: all of them, or those under one heading."""
    from onnxq.config import QuantConfig

    wanted = command.groups if group is None else (group,)
    fields: Mapping[str, Any] = QuantConfig.model_fields
    return [name for name, field in fields.items() if field.json_schema_extra["group"] in wanted]


def _parser(command: _Command, prog: str) -> _Parser:
    usage = f"{prog} {' '.join(command.files).upper()} [options]"
    parser = _Parser(prog=prog, usage=usage, description=command.help, allow_abbrev=False, add_help=False)
    files = parser.add_argument_group("files")
    for name, text in command.files.items():
        files.add_argument(name, metavar=name.upper(), help=text)
    for group in command.groups:
        section = parser.add_argument_group(_HEADINGS[group])
        for name in _options(command, group=group):
            _add_option(section, name)
    section = parser.add_argument_group("this command")
    for flag, text in command.flags.items():
        name, _, value = flag.partition(" ")
        kind: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
        section.add_argument(name, help=text, **kind)
    section.add_argument("-h", "--help", action="help", help="show this and exit")
    return parser


def _add_option(section: argparse._ArgumentGroup, name: str) -> None:
    """One field of `QuantConfig` as an option; pydantic checks its value, not argparse."""
    from onnxq.config import QuantConfig

    field: Any = QuantConfig.model_fields[name]
    keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
    if field.annotation is bool:
        keywords["action"] = "store_true"
    else:
        choices = "{" + ",".join(_choices(field.annotation)) + "}"
        keywords["metavar"] = field.json_schema_extra["metavar"] or choices
    text = str(field.description)
    if get_origin(field.annotation) is tuple:
        keywords["action"] = "append"
        text += " (repeat for more)"
    if field.default not in (None, False, ()):
        text += f"; default: {field.default}"
    section.add_argument(_flag(name), help=text.replace("%", "%%"), **keywords)


def _choices(annotation: Any) -> list[str]:
    """The strings of a Literal, also inside ``Literal[...] | None``."""
    return [s for a in get_args(annotation) for s in ([a] if isinstance(a, str) else _choices(a))]


def _version() -> str:
    from importlib.metadata import version

    return version("onnxq")


if __name__ == "__main__":
    sys.exit(main())
