"""What a person sees: progress bars, the closing table, the plan."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from onnxq.evaluate import Quality, Speed
from onnxq.model import size_on_disk
from onnxq.pipeline import Progress, QuantResult
from onnxq.plan import QuantPlan

_OUT = Console(highlight=False)
_ERR = Console(stderr=True, highlight=False)


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Shows how far the work is, on a terminal only, and leaves nothing behind."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=_ERR, transient=True, disable=quiet or not _ERR.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def told(stage: str, done: int = 0, total: int | None = None) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield told


def show_warnings(warnings: Iterable[str]) -> None:
    """On stderr, where they cannot be missed."""
    for warning in warnings:
        _ERR.print(Panel(warning, title="WARNING", border_style="bold red", style="red"))


def show_result(output: str, result: QuantResult, *, every_node: bool) -> None:
    """The closing table."""
    table = _table(output)
    table.add_row("quantized", _shares(result.plan))
    for label, text in _float_rows(result.plan, every_node):
        table.add_row(label, text)
    table.add_row("size", _sizes(result.float_bytes, result.int8_bytes))
    if result.quality is not None:
        for name, text in _quality_rows(result.quality):
            table.add_row(name, text)
        table.add_row("measured on", f"{result.quality.samples} samples ({result.judged_on})")
    else:
        table.add_row("accuracy", "not measured: there are no samples")
    table.add_row("time", f"{result.seconds:.1f} s")
    for warning in result.warnings:
        table.add_row("[red]warning[/]", f"[red]{warning}[/]")
    _OUT.print(table)


def show_comparison(float_path: str, int8_path: str, quality: Quality, speed: Speed) -> None:
    """Accuracy, size and speed of two models."""
    table = _table(f"{int8_path} against {float_path}")
    for name, text in _quality_rows(quality):
        table.add_row(name, text)
    table.add_row("measured on", f"{quality.samples} samples")
    table.add_row("size", _sizes(size_on_disk(float_path), size_on_disk(int8_path)))
    table.add_row(
        "speed",
        f"{speed.float_seconds * 1e3:.2f} ms -> {speed.int8_seconds * 1e3:.2f} ms: "
        f"{speed.ratio:.2f}x of float (one thread, median of pairs)",
    )
    _OUT.print(table)


def show_plan(model: str, plan: QuantPlan) -> None:
    """Every node that is to run in integers, every other with its reason."""
    table = Table(title=f"{model} for {plan.target}", title_justify="left")
    for column in ("node", "operator", "runs in"):
        table.add_column(column, overflow="fold")
    for name, op_type in plan.nodes.items():
        table.add_row(name, op_type, "[green]integers[/]")
    for name, node in plan.floats.items():
        table.add_row(name, node.op_type, f"[yellow]float[/]: {node.reason}")
    _OUT.print(table)
    _OUT.print(f"{len(plan.nodes)} nodes in integers: {_shares(plan)}; {len(plan.floats)} in float")


def print_json(plan: QuantPlan) -> None:
    """The plan for machines."""
    content: dict[str, Any] = {
        "target": plan.target,
        "integer_nodes": dict(plan.nodes),
        "float_nodes": {name: node.reason for name, node in plan.floats.items()},
        "points": [
            {
                "tensor": point.tensor,
                "consumer": point.consumer,
                "input_index": point.input_index,
                "type": point.spec.dtype.name.lower(),
                "symmetric": point.spec.symmetric,
                "axis": point.spec.axis,
                "group": point.group,
            }
            for point in plan.points
        ],
    }
    _OUT.print_json(json.dumps(content))


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _shares(plan: QuantPlan) -> str:
    """Of each quantized operator type, how many of how many."""
    integers = Counter(plan.nodes.values())
    floats = Counter(node.op_type for node in plan.floats.values())
    return ", ".join(f"{n} of {n + floats[op]} {op}" for op, n in integers.most_common())


def _float_rows(plan: QuantPlan, every_node: bool) -> Iterator[tuple[str, str]]:
    if every_node:
        yield from (("float", f"{name} ({n.op_type}): {n.reason}") for name, n in plan.floats.items())
        return
    for node, count in Counter(plan.floats.values()).most_common():
        yield "float", f"{count} {node.op_type}: {node.reason}"


def _sizes(float_bytes: int, int8_bytes: int) -> str:
    return f"{float_bytes / 1e6:.2f} MB -> {int8_bytes / 1e6:.2f} MB ({int8_bytes / float_bytes:.2f} of float)"


def _quality_rows(quality: Quality) -> Iterator[tuple[str, str]]:
    for name, output in quality.outputs.items():
        parts = []
        if not math.isnan(output.sqnr):
            parts.append(f"SQNR {output.sqnr:.2f} dB")
        if output.agreement is not None:
            parts.append(f"agreement with float {output.agreement:.1%}")
        yield name, ", ".join(parts) or "nothing to compare"
