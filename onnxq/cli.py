"""The command line: arguments -> `QuantConfig` -> the pipeline. No logic of its own.

Options are read off `QuantConfig`; nothing heavy is imported before it is needed, so that ``--help``
answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from onnxq.config import QuantConfig
from onnxq.errors import ConfigError, OnnxqError, TargetError

DONE, FAILED, WRONG_USAGE = 0, 1, 2

_DATA = ("data", "preprocess", "samples", "batch_size")
_PLAN = ("target", "activation", "weight", "per_tensor", "exclude", "include", "quantize_outputs")


@dataclass(frozen=True)
class _Command:
    """A subcommand.

    Attributes:
        help: one line.
        files: its positional arguments, name -> help.
        options: the fields of `QuantConfig` that make sense for it.
        flags: its own switches, flag -> help; those that take a value name it after a blank.
        act: does it.
    """

    help: str
    files: Mapping[str, str]
    options: tuple[str, ...]
    flags: Mapping[str, str]
    act: Callable[[argparse.Namespace, QuantConfig], None]


def _quantize(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq import display, pipeline

    if args.save_config:
        config.save(Path(args.save_config))
    if args.dry_run:
        display.show_plan(args.model, pipeline.prepare(args.model, config)[1])
        return
    with display.progress(quiet=args.quiet) as progress:
        result = pipeline.quantize_static(args.model, args.output, config=config, progress=progress)
    display.show_warnings(result.warnings)
    if not args.quiet:
        display.show_result(args.output, result, every_node=args.verbose)


def _compare(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq import display, pipeline

    quality, speed = pipeline.compare_files(args.float, args.int8, config)
    display.show_comparison(args.float, args.int8, quality, speed)


def _inspect(args: argparse.Namespace, config: QuantConfig) -> None:
    from onnxq import display, pipeline

    plan = pipeline.prepare(args.model, config)[1]
    if args.json:
        display.print_json(plan)
    else:
        display.show_plan(args.model, plan)


_TALK = {
    "--quiet": "print warnings and errors only",
    "--verbose": "print what each step does, and every node that stays float",
}

_COMMANDS: Mapping[str, _Command] = {
    "quantize": _Command(
        help="turn a float ONNX model into an int8 one",
        files={"model": "the float model", "output": "the int8 model to write"},
        options=tuple(QuantConfig.model_fields),
        flags={
            "--config FILE.yaml": "read options from a file; those given here win",
            "--save-config FILE.yaml": "write the options used",
            "--dry-run": "print the plan, with a reason for every node that stays float; write nothing",
            **_TALK,
        },
        act=_quantize,
    ),
    "compare": _Command(
        help="accuracy, size and speed of an int8 model against its float original",
        files={"float": "the float model", "int8": "the quantized model"},
        options=(*_DATA, "provider", "threads", "seed"),
        flags=_TALK,
        act=_compare,
    ),
    "inspect": _Command(
        help="what would be quantized, and why the rest would not",
        files={"model": "the float model"},
        options=_PLAN,
        flags={"--json": "machine-readable", **_TALK},
        act=_inspect,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The ``onnxq`` command; returns the exit code (0 done, 1 failed, 2 wrong usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _COMMANDS:
        return run(arguments[0], arguments[1:], prog=f"onnxq {arguments[0]}")
    listing = "\n".join(f"  {name:<12}{command.help}" for name, command in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="onnxq",
        description="Quantize ONNX models to int8.",
        epilog=f"commands:\n{listing}\n\n'onnxq COMMAND --help' tells a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onnxq {_version()}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="what to do")
    return _exit_code(lambda: parser.parse_args(arguments))


def run(name: str, argv: Sequence[str], prog: str) -> int:
    """Run one subcommand; returns the exit code."""
    command = _COMMANDS[name]
    parser = _parser(command, prog)
    return _exit_code(lambda: _act(command, parser, argv))


def _act(command: _Command, parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    args = parser.parse_args(argv)
    _set_up_logging(args.verbose)
    given = {name: getattr(args, name) for name in command.options if hasattr(args, name)}
    try:
        file = getattr(args, "config", None)
        config = QuantConfig.load(Path(file), **given) if file else QuantConfig(**given)
        command.act(args, config)
    except (ConfigError, TargetError) as error:
        parser.error(str(error))


def _exit_code(action: Callable[[], object]) -> int:
    """Every way to end, as the exit code that cli.md promises; messages are one line on stderr."""
    try:
        action()
    except SystemExit as error:  # argparse has said what is wrong
        return error.code if isinstance(error.code, int) else WRONG_USAGE
    except OnnxqError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return FAILED
    return DONE


def _parser(command: _Command, prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=command.help, allow_abbrev=False)
    for name, text in command.files.items():
        parser.add_argument(name, metavar=name.upper(), help=text)
    for name in command.options:
        _add_option(parser, name)
    for flag, text in command.flags.items():
        name, _, value = flag.partition(" ")
        if value:
            parser.add_argument(name, metavar=value, help=text)
        else:
            parser.add_argument(name, action="store_true", help=text)
    return parser


def _add_option(parser: argparse.ArgumentParser, name: str) -> None:
    """One field of `QuantConfig` as an option; pydantic checks its value, not argparse."""
    field = QuantConfig.model_fields[name]
    extra: Any = field.json_schema_extra
    keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
    if field.annotation is bool:
        keywords["action"] = "store_true"
    else:
        choices = _choices(field.annotation)
        keywords["metavar"] = extra["metavar"] or "{" + ",".join(choices) + "}"
    if get_origin(field.annotation) is tuple:
        keywords["action"] = "append"
    help_text = str(field.description)
    if field.default not in (None, False, ()):
        help_text += f"; default: {field.default}"
    if get_origin(field.annotation) is tuple:
        help_text += " (repeat for more)"
    parser.add_argument("--" + name.replace("_", "-"), help=help_text.replace("%", "%%"), **keywords)


def _choices(annotation: Any) -> list[str]:
    """The strings of a Literal, also inside ``Literal[...] | None``."""
    return [s for a in get_args(annotation) for s in ([a] if isinstance(a, str) else _choices(a))]


def _set_up_logging(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for library in ("onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _version() -> str:
    from importlib.metadata import version

    return version("onnxq")


if __name__ == "__main__":
    sys.exit(main())
