"""Shell completion, by argcomplete: ``onnxq completion bash`` prints the script that a shell reads.

The script runs ``onnxq`` itself for each completion, with ``_ARGCOMPLETE`` in its environment, so what is
offered is always what this version takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxq.cli.options import Command, Parser, choices_of, whole_parser
from onnxq.core.errors import ConfigError, did_you_mean

SHELLS = ("bash", "zsh", "fish")

Completer = Callable[..., Sequence[str]]
"""Called with the ``prefix`` that was typed, and more by keyword; returns what it may become."""


def script(shell: str) -> str:
    """Make the script for ``shell``.

    Raises:
        ConfigError: there is no script for that shell, or argcomplete is not installed.
    """
    if shell not in SHELLS:
        near = did_you_mean(shell, SHELLS)
        raise ConfigError(f"no completion for shell {shell!r}; valid shells: {', '.join(SHELLS)}{near}")
    text: str = _argcomplete().shellcode(["onnxq"], shell=shell)
    return text


def answer(commands: Mapping[str, Command]) -> None:
    """Answer a shell that asks for completions, and end the process."""
    _argcomplete().autocomplete(completing_parser(commands))


def completing_parser(commands: Mapping[str, Command]) -> Parser:
    """Make the parser of all commands, with completers of the values of options."""
    parser, parsers = whole_parser(commands)
    for name, sub in parsers.items():
        for action in sub._actions:
            completer = _completer(name, action)
            if completer is not None:
                action.completer = completer  # type: ignore[attr-defined]
    return parser


def _completer(command: str, action: argparse.Action) -> Completer | None:
    """Find the completer of an option's value; None: file names."""
    from onnxq.core.config import QuantConfig

    if make := _VALUES.get((command, action.dest), _VALUES.get(("", action.dest))):
        return _listed if action.dest == "correct" else _one_of(make)
    field: Any = QuantConfig.model_fields.get(action.dest)
    if field is None or _names_files(field.annotation):
        return None
    return _one_of(lambda: choices_of(field.annotation))


def _one_of(make: Callable[[], Sequence[str]]) -> Completer:
    def complete(prefix: str, **_: Any) -> Sequence[str]:
        return [name for name in make() if name.startswith(prefix)]

    return complete


def _listed(prefix: str, **_: Any) -> Sequence[str]:
    """Complete the last of several names between commas."""
    *before, last = prefix.split(",")
    names = (name for name in _corrections() if name.startswith(last) and name not in before)
    return [",".join((*before, name)) for name in names]


def _names_files(annotation: Any) -> bool:
    return "Path" in str(annotation)


def _targets() -> Sequence[str]:
    from onnxq.targets import TARGETS

    return list(TARGETS)


def _presets() -> Sequence[str]:
    from calibrators.data.preprocess import PRESETS

    return list(PRESETS)


def _providers() -> Sequence[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _formats() -> Sequence[str]:
    from onnxq.core.option_types import TableFormat

    return choices_of(TableFormat)


def _corrections() -> Sequence[str]:
    from onnxq.core.option_types import Correction

    return choices_of(Correction)


_VALUES: Mapping[tuple[str, str], Callable[[], Sequence[str]]] = {
    ("", "target"): _targets,
    ("", "preprocess"): _presets,
    ("", "provider"): _providers,
    ("", "correct"): _corrections,
    ("table", "format"): _formats,
    ("completion", "shell"): lambda: SHELLS,
}
"""Command ("": all) and option -> its values, where they do not follow from its type."""


def _argcomplete() -> Any:
    try:
        import argcomplete
    except ModuleNotFoundError as error:
        raise ConfigError("shell completion needs argcomplete: pip install argcomplete") from error
    return argcomplete
