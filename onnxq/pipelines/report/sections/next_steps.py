"""The section with commands: the one that made the model, and those to try next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from shlex import quote
from typing import Any

from onnxq.core.config import QuantConfig
from onnxq.core.floor import GOOD_SQNR
from onnxq.pipelines.report.blocks import Blocks, Commands
from onnxq.pipelines.report.report import Report, Request

STEP = 3
"""How many dB above the reached SQNR the suggested goal is: half the noise."""


def commands(report: Report) -> Blocks:
    """Yield the commands, each with what it is for."""
    yield Commands(tuple(_commands(report)))


def _commands(report: Report) -> Iterator[tuple[str, str]]:
    asked = report.request
    model, output = quote(asked.model), quote(asked.output)
    command = "quantize" if report.from_float else "requantize"
    given = " ".join(options_of(asked))
    made = f"onnxq {command} {model} {output} {given}".rstrip()
    data = _data(asked)
    yield "made this model", made
    if asked.config.data is None and asked.data:
        yield "the data came from Python; from files", f"{made} --data FILES"
    yield "compare accuracy, size and speed again", f"onnxq compare {model} {output}{data or ' --data FILES'}"
    yield "check it for the target", f"onnxq verify {output} --target {asked.config.target}"
    if not report.from_float:
        return
    yield "see what each quantized tensor alone costs", f"onnxq sensitivity {model}{data or ' --data FILES'}"
    if asked.config.mode == "static" and asked.config.goal is None:
        goal = quote(f"sqnr>={_more(report):.0f}")
        yield "more accuracy, for some speed or size", f"{made} --goal {goal}"
    if asked.config.mode == "static" and "adaround" not in asked.config.correct:
        correct = ",".join((*[c for c in asked.config.correct if c != "none"], "adaround"))
        yield "learn the rounding of weights (slow)", f"{_without(asked, 'correct')} --correct {correct}"


def _more(report: Report) -> float:
    """An SQNR in dB to aim at: what is good, or above what was reached already."""
    reached = math.nan if report.quality is None else report.quality.sqnr
    return max(GOOD_SQNR, math.ceil(reached) + STEP) if math.isfinite(reached) else GOOD_SQNR


def _data(asked: Request) -> str:
    names = ("data", "preprocess")
    chosen = {name: getattr(asked.config, name) for name in names}
    return "".join(f" --{name} {quote(str(value))}" for name, value in chosen.items() if value is not None)


def _without(asked: Request, *names: str) -> str:
    options = " ".join(options_of(asked, without=names))
    return f"onnxq quantize {quote(asked.model)} {quote(asked.output)} {options}".rstrip()


def options_of(asked: Request, without: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the options that differ from their defaults, as on the command line.

    Args:
        asked: the request.
        without: names of options to leave out.
    """
    config = asked.config
    for name, value in config.model_dump(mode="json").items():
        field = QuantConfig.model_fields.get(name)
        if field is None or name in without or getattr(config, name) == field.default:
            continue
        yield from _spelled(f"--{name.replace('_', '-')}", value)


def _spelled(option: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        yield option
    elif isinstance(value, list):
        yield from (f"{option} {quote(str(each))}" for each in value)
    elif value is not None:
        yield f"{option} {quote(str(value))}"
