"""Make the command-line options from the fields of `QuantConfig`: there is no second list of them."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from onnxq.cli.exit_codes import WRONG_USAGE, one_line
from onnxq.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from onnxq.core.config import QuantConfig

_HEADINGS: Mapping[str, str] = {
    "data": "data",
    "ranges": "ranges",
    "accuracy": "accuracy",
    "metric": "metric of your task",
    "goal": "accuracy goal",
    "speed": "speed",
    "tables": "tables, statistics, report",
    "mode": "static, dynamic or weight-only",
    "plan": "target, nodes and number formats",
    "types": "float types",
    "running": "running",
}
"""Group of options in `QuantConfig` -> its heading in the help."""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        help: one line.
        files: positional arguments, name -> help; "..." after a name: one or more.
        groups: the groups of `QuantConfig` options that the command takes.
        flags: further switches, flag -> help. If a switch takes a value, the value's name follows after a
            blank, in brackets if it may be left out. A switch with the name of a `QuantConfig` option
            replaces that option.
        act: function that runs the command.
        idle: options of these groups that have no meaning for the command.
        further: options of other groups that it takes.
        examples: command lines, each with what it does, for the help.
    """

    help: str
    files: Mapping[str, str]
    groups: tuple[str, ...]
    flags: Mapping[str, str]
    act: Callable[[argparse.Namespace, QuantConfig], None]
    idle: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    examples: Mapping[str, str] = field(default_factory=dict)


HANGING = " " * 14
"""What the further lines of a long line in a list of commands begin with."""


class HelpFormatter(argparse.HelpFormatter):
    """Wraps help at blanks only, so that names of options and targets stay whole, and keeps lines apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        hanging = {line: HANGING if line.startswith(" ") else "" for line in lines}
        return "\n".join(textwrap.fill(line, width, subsequent_indent=hanging[line]) for line in lines)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


def told_examples(examples: Mapping[str, str]) -> str:
    """List command lines with what they do."""
    lines = (f"  {what}:\n    {line}" for line, what in examples.items())
    return "\n".join(("examples:", *lines)) if examples else ""


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage on one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """End with the exit code of wrong usage."""
        self.exit(WRONG_USAGE, f"error: {one_line(message)} (see: {self.prog} --help)\n")


def parse(command: Command, arguments: Sequence[str], prog: str) -> tuple[argparse.Namespace, QuantConfig]:
    """Parse the files and switches of a command, and its options.

    Args:
        command: the command.
        arguments: the arguments after its name.
        prog: the command as the user calls it, for messages.

    Raises:
        SystemExit: the usage is wrong, or only help was requested; the message was printed.
    """
    parser = _parser(command, prog)
    args, rest = parser.parse_known_args(arguments)
    if rest:
        parser.error(_unknown(rest, command))
    return args, _config(args, command, parser)


def _config(args: argparse.Namespace, command: Command, parser: argparse.ArgumentParser) -> QuantConfig:
    from pydantic import ValidationError

    from onnxq.core.config import QuantConfig
    from onnxq.core.option_errors import explain

    given = {name: getattr(args, name) for name in _options(command) if hasattr(args, name)}
    file = getattr(args, "config", None)
    try:
        return QuantConfig(**given) if file is None else QuantConfig.load(Path(file), **given)
    except ConfigError as error:
        cause = error.__cause__
        parser.error(
            explain(cause, QuantConfig.model_fields, _flag)
            if isinstance(cause, ValidationError)
            else str(error)
        )


def _unknown(rest: Sequence[str], command: Command) -> str:
    """Describe the first argument that the parser does not know."""
    options = [argument.split("=")[0] for argument in rest if argument.startswith("-")]
    if not options:
        return f"unexpected argument {rest[0]!r}; expected {' '.join(command.files).upper()} and options"
    valid = [*map(_flag, _options(command)), *(flag.split()[0] for flag in command.flags)]
    return f"unknown option {options[0]}; valid options: {', '.join(valid)}{did_you_mean(options[0], valid)}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _options(command: Command, *, group: str | None = None) -> list[str]:
    """List the `QuantConfig` fields that a command takes, of all its groups or of one."""
    from onnxq.core.config import QuantConfig

    wanted = command.groups if group is None else (group,)
    fields: Mapping[str, Any] = QuantConfig.model_fields
    here = [name for name, field in fields.items() if field.json_schema_extra["group"] in wanted]
    here += command.further if command.groups and group in (None, command.groups[0]) else ()
    own = {flag.split()[0] for flag in command.flags}
    return [name for name in here if _flag(name) not in own and name not in command.idle]


def _parser(command: Command, prog: str) -> Parser:
    usage = " ".join((prog, *(name.upper() for name in command.files), "[options]"))
    parser = Parser(
        prog=prog,
        usage=usage,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=told_examples(command.examples),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    files = parser.add_argument_group("arguments")
    for name, text in command.files.items():
        several: dict[str, Any] = {"nargs": "+"} if name.endswith("...") else {}
        files.add_argument(name.rstrip("."), metavar=name.rstrip(".").upper(), help=text, **several)
    for group in command.groups:
        section = parser.add_argument_group(_HEADINGS[group])
        for name in _options(command, group=group):
            _add_option(section, name)
    section = parser.add_argument_group("this command")
    for flag, text in command.flags.items():
        name, _, value = flag.partition(" ")
        kind: dict[str, Any] = {"metavar": value.strip("[]")} if value else {"action": "store_true"}
        if value.startswith("["):
            kind |= {"nargs": "?", "const": ""}
        section.add_argument(name, help=text, **kind)
    section.add_argument("-h", "--help", action="help", help="show this and exit")
    return parser


def whole_parser(commands: Mapping[str, Command]) -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """Make one parser of all commands, and return it with those of the commands by name."""
    parser = Parser(prog="onnxq", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    kinds = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    parsers: dict[str, argparse.ArgumentParser] = {
        name: kinds.add_parser(name, parents=[_parser(command, name)], add_help=False, help=command.help)
        for name, command in commands.items()
    }
    return parser, parsers


def _add_option(section: argparse._ArgumentGroup, name: str) -> None:
    """Add one field of `QuantConfig` as an option; pydantic checks its value, not argparse."""
    from onnxq.core.config import QuantConfig

    field: Any = QuantConfig.model_fields[name]
    keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
    if field.annotation is bool:
        keywords["action"] = "store_true"
    else:
        choices = "{" + ",".join(choices_of(field.annotation)) + "}"
        keywords["metavar"] = field.json_schema_extra["metavar"] or choices
    text = str(field.description)
    if get_origin(field.annotation) is tuple:
        keywords["action"] = "append"
        text += " (repeat for more)"
    if field.default not in (None, False, ()):
        names = field.default if isinstance(field.default, tuple) else (field.default,)
        text += f"; default: {', '.join(map(str, names))}"
    section.add_argument(_flag(name), help=text.replace("%", "%%"), **keywords)


def choices_of(annotation: Any) -> list[str]:
    """List the strings of a Literal, also inside ``Literal[...] | None``."""
    return [s for a in get_args(annotation) for s in ([a] if isinstance(a, str) else choices_of(a))]
