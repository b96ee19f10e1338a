"""Describe wrong options in the words of the user, not of pydantic."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from calibrators.errors import CalibrationError
from onnxq.core.errors import ConfigError, did_you_mean

_EXPECTED: Mapping[str, str] = {
    "literal_error": "{expected}",
    "metric": "FILE.py:FUNCTION, a built-in name, or a function in Python",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "path_type": "a path",
    "string_type": "a string",
    "tuple_type": "a list of strings",
}
"""Pydantic's error type -> the text after "expected"; pydantic's own message is used for other types."""


def explain(error: ValidationError, names: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Describe all errors on one line.

    Args:
        error: the errors of pydantic.
        names: the valid options.
        spell: turns the name of an option into the name that the user knows.
    """
    valid = tuple(map(spell, names))
    return "; ".join(_explain(problem, valid, spell) for problem in error.errors())


def _explain(problem: Any, valid: Collection[str], spell: Callable[[str], str]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown option {name!r}; valid options: {', '.join(valid)}{did_you_mean(spell(name), valid)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] in _EXPECTED:
        expected = _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
    else:
        expected = str(problem["msg"]).removeprefix("Input should be ")
    near = _nearest(problem) if problem["type"] == "literal_error" else ""
    return f"{spell(name)}: expected {expected}, got {problem['input']!r}{near}"


def _nearest(problem: Any) -> str:
    """Ask for the nearest of the values that pydantic expected."""
    return did_you_mean(str(problem["input"]), re.findall("'([^']*)'", problem["ctx"]["expected"]))


@contextmanager
def invalid() -> Iterator[None]:
    """Turn errors of ours into the one that pydantic expects of a validator."""
    try:
        yield
    except (CalibrationError, ConfigError) as error:
        raise ValueError(str(error)) from error
