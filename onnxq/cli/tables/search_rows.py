"""The rows of the closing table about accuracy, searches (for a goal, for the floor, for speed) and times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from rich.filesize import decimal

from calibrators.errors import shorten
from onnxq.algorithms.autotune.tuner import Tuning
from onnxq.algorithms.mixed_precision.noisy_nodes import Rescue
from onnxq.algorithms.mixed_precision.search import Search
from onnxq.algorithms.mixed_precision.trials import TrialResult
from onnxq.verify.accuracy import Quality
from onnxq.verify.latency import Speed


def counted(count: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def search_rows(search: Search) -> Iterator[str]:
    """Yield how the goal was reached, and what cheaper and costlier models give."""
    chosen, trials = search.chosen, counted(len(search.attempts), "trial")
    float_nodes = f"{counted(len(chosen.floats), 'more node')} in float"
    yield f"{search.goal} holds with {', '.join((float_nodes, *_wider(chosen)))}, after {trials}"
    for attempt in search.curve:
        mark = " (chosen)" if attempt.key == chosen.key else ""
        forms = ", ".join((f"{len(attempt.floats)} in float", *_wider(attempt)))
        yield f"{forms}: {', '.join(_attempt(search, attempt))}{mark}"
    for part, nodes in {"weights": chosen.widened, "activations": chosen.wide_activations}.items():
        if nodes:
            yield f"wider {part}: {shorten(list(nodes))}; --search-log FILE lists them all"


def _wider(attempt: TrialResult) -> Iterator[str]:
    """Yield the number of nodes with wider weights or activations, type by type."""
    for name, count in Counter(attempt.widened.values()).items():
        yield f"{count} in {name}"
    for name, count in Counter(attempt.wide_activations.values()).items():
        yield f"{count} with {name} activations"


def _attempt(search: Search, attempt: TrialResult) -> Iterator[str]:
    if search.goal.name == "agreement":
        yield f"expected agreement {attempt.value:.2%}"
    elif search.goal.name != "sqnr":
        yield f"{search.goal.name} {attempt.value:.4g}"
    yield f"SQNR {attempt.sqnr:.2f} dB"
    if attempt.agreement is not None:
        yield f"counted agreement {attempt.agreement:.1%}"
    if attempt.speed is not None:
        yield f"{attempt.speed:.2f} times as fast"
    if search.chosen.widened:
        yield f"constants {decimal(attempt.size)}"


def rescue_row(rescue: Rescue) -> str:
    """Return what was done where the accuracy was below the floor."""
    if rescue.refused is not None:
        least = f"{rescue.floor.sqnr:g} dB"
        none = "reaches" if rescue.finished else "was found in time that reaches"
        return f"all in float: SQNR {rescue.before:.2f} dB, and no model with integers {none} {least}"
    late = "" if rescue.finished else "; there was no time to try more nodes"
    changed = {"kept in float": rescue.floats, "with wider activations": rescue.wide}
    told = [f"{counted(len(n), 'node')} {how}: {shorten(list(n))}" for how, n in changed.items() if n]
    if not told:
        return f"SQNR {rescue.before:.2f} dB is below the floor ({rescue.floor}); no few nodes help{late}"
    return f"{'; '.join(told)}; SQNR {rescue.before:.2f} -> {rescue.after:.2f} dB{late}"


def tuning_rows(tuning: Tuning) -> Iterator[str]:
    """Yield the models that were timed, and the nodes that are kept in float because of it."""
    for one in tuning.contestants:
        mark = " (chosen)" if one is tuning.chosen else ""
        nodes = counted(len(one.floats), "node")
        yield f"{nodes} kept in float: {one.gain:.2f} times as fast as float{mark}"
    if tuning.floats:
        yield f"kept in float: {shorten(list(tuning.floats))}; --save-config lists them all under exclude"


def speed_row(speed: Speed, threads: int) -> str:
    """Return the times of both models and their ratio; ``threads`` is 0 for all."""
    before, after = _milliseconds(speed.float_seconds), _milliseconds(speed.int8_seconds)
    used = counted(threads, "thread") if threads else "all threads"
    return f"{before} -> {after} a run: {speed.ratio:.2f} times as fast ({used})"


def _milliseconds(seconds: float) -> str:
    """Write a time with three digits, so that the ratio of two times can be checked."""
    digits = 2 - math.floor(math.log10(max(seconds * 1e3, 1e-6)))
    return f"{seconds * 1e3:.{max(digits, 0)}f} ms"


def quality_rows(quality: Quality, reference: str = "float") -> Iterator[str]:
    """Yield the accuracy of each output, and the value of the task's metric."""
    for name, output in quality.outputs.items():
        parts = []
        if not math.isnan(output.sqnr):
            parts.append(f"SQNR {output.sqnr:.2f} dB")
        if output.agreement is not None:
            parts.append(f"agreement with {reference} {output.agreement:.1%}")
        if output.next_token is not None:
            parts.append(output.next_token.describe(reference))
        yield f"{name}: {', '.join(parts) or 'nothing to compare'}"
    if quality.metric is not None:
        yield str(quality.metric)
