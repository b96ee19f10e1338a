"""Print results, comparisons, rankings and verdicts as tables; `as_json` prints the same as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import Literal

from onnx_ir import DataType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from calibrators.errors import shorten
from calibrators.statistics import Statistics
from calibrators.statistics.stability import Stability, run_stability, stability
from onnxq.algorithms.sensitivity.analysis import Sensitivity
from onnxq.cli.tables.search_rows import (
    counted,
    quality_rows,
    rescue_row,
    search_rows,
    speed_row,
    tuning_rows,
)
from onnxq.cli.tables.tree import counts, tree, without_names
from onnxq.cli.terminal import ERR, OUT, warn
from onnxq.core.plan import QuantPlan
from onnxq.graph.files import size_on_disk
from onnxq.pipelines.conversions.cache import CacheResult
from onnxq.pipelines.conversions.convert import Converted
from onnxq.pipelines.inspection import Inspection
from onnxq.pipelines.report.activations import stabilities
from onnxq.pipelines.report.bits import told_types
from onnxq.pipelines.requantize import Requantized
from onnxq.pipelines.result import QuantResult
from onnxq.verify.accuracy import Quality
from onnxq.verify.latency import Speed
from onnxq.verify.verdict import Verdict

WIDTH = 100
"""The most columns of a table, also where no terminal limits it: longer texts are folded."""

FLOAT_ROWS = 10
"""The number of reasons in the closing table; ``--verbose`` lists all nodes."""


def show_result(output: str, result: QuantResult, *, quiet: bool, every_node: bool) -> None:
    """Print the closing table, then the warnings.

    If stdout and stderr are not both a terminal, the warnings are repeated in the table.

    Args:
        output: path of the written model.
        result: the result to print.
        quiet: print only the warnings.
        every_node: list every node kept in float, and every tensor whose range still grew.
    """
    if not quiet:
        table = _table(output)
        for name, text in _result_rows(result, every_node):
            table.add_row(name, text)
        if not (OUT.is_terminal and ERR.is_terminal):
            for warning in result.warnings:
                table.add_row("warning", warning)
        print_table(table)
    for warning in result.warnings:
        warn(warning)


def show_conversion(output: str, result: Converted, *, quiet: bool, every_node: bool) -> None:
    """Print the closing table of a conversion, then the warnings.

    Args:
        output: path of the written model.
        result: the result to print.
        quiet: print only the warnings.
        every_node: list every node kept in float32.
    """
    if not quiet:
        table = _table(output)
        narrowed = ", ".join(f"{count} {op_type}" for op_type, count in result.narrowed.items())
        table.add_row(result.dtype.name.lower(), narrowed or "no node")
        for text in _float32_rows(result.float32, every_node):
            table.add_row("float32", text)
        table.add_row("casts", str(result.casts))
        table.add_row("size", _sizes(result.before, result.after, "the given model"))
        for text in quality_rows(result.quality, "the given model"):
            table.add_row("accuracy", text)
        table.add_row("measured on", f"{result.judged_on}: {result.quality.samples}")
        table.add_row("time", f"{result.seconds:.1f} s")
        print_table(table)
    for warning in result.warnings:
        warn(warning)


def show_cache(output: str, result: CacheResult, *, quiet: bool) -> None:
    """Print the closing table of caches in int8, then the warnings.

    Args:
        output: path of the written model.
        result: the result to print.
        quiet: print only the warnings.
    """
    if not quiet:
        table = _table(output)
        for axis, count in Counter(result.axes.values()).most_common():
            scales = "one scale" if axis is None else f"a scale for each channel of axis {axis}"
            table.add_row("caches", f"{count} in int8, {scales}")
        if result.position_bytes is not None:
            table.add_row("a position", "{:,} -> {:,} bytes in all caches".format(*result.position_bytes))
        table.add_row("size", _sizes(result.before, result.after, "the given model"))
        outputs = result.quality.outputs
        others = {name: found for name, found in outputs.items() if name not in result.axes}
        for text in quality_rows(replace(result.quality, outputs=others), "the given model"):
            table.add_row("accuracy", text)
        worst = min(result.axes, key=lambda name: outputs[name].sqnr)
        table.add_row("accuracy", f"worst cache, {worst}: SQNR {outputs[worst].sqnr:.2f} dB")
        table.add_row("measured on", f"{result.judged_on}: {result.quality.samples}, all positions rounded")
        table.add_row("time", f"{result.seconds:.1f} s")
        print_table(table)
    for warning in result.warnings:
        warn(warning)


def show_export(path: str, inputs: Sequence[str], outputs: Sequence[str], sqnr: Mapping[int, float]) -> None:
    """Print what was exported.

    Args:
        path: path of the ONNX file.
        inputs: the names of its inputs.
        outputs: the names of its outputs.
        sqnr: batch size -> SQNR against PyTorch, in dB.
    """
    table = _table(f"{path} was exported")
    table.add_row("inputs", ", ".join(inputs))
    table.add_row("outputs", ", ".join(outputs))
    for size, quality in sqnr.items():
        table.add_row(f"batch of {size}", f"SQNR against PyTorch {quality:.0f} dB")
    print_table(table)


def show_statistics(
    model: str, file: str, statistics: Statistics, seconds: float, *, every_tensor: bool
) -> None:
    """Print a summary of collected statistics, and the command that uses them.

    Args:
        model: path of the float model.
        file: path of the statistics.
        statistics: the statistics.
        seconds: duration.
        every_tensor: list every tensor whose range still grew.
    """
    table = _table(file)
    counts = counted(statistics.samples, "sample"), counted(len(statistics), "tensor")
    table.add_row("collected", ", ".join(counts))
    if statistics.inputs is not None:
        table.add_row("inputs", str(statistics.inputs))
    for row in _stability_rows({name: stability(t) for name, t in statistics.items()}, every_tensor):
        table.add_row(*row)
    table.add_row("time", f"{seconds:.1f} s")
    print_table(table)
    OUT.print(f"next: onnxq quantize {quote(model)} OUTPUT --from-table {quote(file)}", soft_wrap=True)


def show_comparison(float_path: str, int8_path: str, quality: Quality, speed: Speed, threads: int) -> None:
    """Print accuracy, size and speed of two models.

    Args:
        float_path: path of the float model.
        int8_path: path of the quantized model.
        quality: accuracy of the quantized model.
        speed: run times of both.
        threads: number of threads of the timing; 0: all.
    """
    table = _table(f"{int8_path} against {float_path}")
    for text in quality_rows(quality):
        table.add_row("accuracy", text)
    table.add_row("measured on", counted(quality.samples, "sample"))
    table.add_row("size", _sizes(size_on_disk(float_path), size_on_disk(int8_path)))
    table.add_row("speed", speed_row(speed, threads))
    print_table(table)


def show_inspection(inspection: Inspection, *, every_group: bool = False) -> None:
    """Print the outline of a model: fused groups in integers, and others with the reason for float."""
    OUT.print(tree(inspection, every_group=every_group))
    OUT.print(counts(inspection))


_RANKING: Mapping[str, Literal["left", "right"]] = {
    "place": "right",
    "tensor": "left",
    "read by": "left",
    "kind": "left",
    "SQNR": "right",
    "share": "right",
}
"""Column -> its alignment."""


def show_ranking(model: str, ranking: Sequence[Sensitivity]) -> None:
    """Print the quantization points, the worst first."""
    table = Table(title=f"{model}: what each point alone costs", title_justify="left")
    for column, justify in _RANKING.items():
        table.add_column(column, overflow="fold", justify=justify)
    total = sum(one.quality.noise for one in ranking) or 1.0
    if any(one.quality.metric for one in ranking):
        table.add_column("metric", justify="right")
    for place, one in enumerate(ranking, start=1):
        readers = ", ".join(f"{name} ({op})" if op else "an output" for name, op in one.readers.items())
        figures = f"{one.quality.sqnr:.1f} dB", f"{one.quality.noise / total:.1%}"
        metric = one.quality.metric
        value = () if metric is None else (f"{metric.value:.4g} ({metric.value - metric.float_value:+.2g})",)
        table.add_row(str(place), one.group.name, readers, one.kind, *figures, *value)
    print_table(table)


_STATUS_STYLES: Mapping[str, str] = {"passed": "green", "failed": "bold red", "not checked": "yellow"}


def show_verdicts(model: str, target: str, verdicts: Sequence[Verdict], *, every_node: bool) -> None:
    """Print the verdict of each check, then its findings: nodes, message, advice.

    Args:
        model: path of the quantized model.
        target: name of its target.
        verdicts: the verdicts.
        every_node: list all nodes of a finding.
    """
    table = Table(title=f"{model} for {target}", title_justify="left")
    for column in ("checked by", "result", "summary"):
        table.add_column(column, overflow="fold")
    for one in verdicts:
        table.add_row(one.runtime, Text(one.status, _STATUS_STYLES[one.status]), one.summary)
    print_table(table)
    for one in verdicts:
        for text in _findings(one, every_node):
            OUT.print(text, soft_wrap=True)


def _findings(verdict: Verdict, every_node: bool) -> Iterator[str]:
    """Yield the findings, each with the nodes that it applies to."""
    for one, names in verdict.grouped:
        where = ", ".join(names) if every_node else shorten(names)
        yield f"{verdict.runtime} {one.severity}: {where}: {one}" if where else f"{one.severity}: {one}"


def print_table(table: Table) -> None:
    """Print a table, folded to `WIDTH` columns."""
    OUT.print(table, width=min(OUT.width, WIDTH))


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _result_rows(result: QuantResult, every_node: bool) -> Iterator[tuple[str, str]]:
    yield from _type_rows(result, every_node)
    if isinstance(result, Requantized):
        yield "scales", f"{len(result.kept)} kept, {len(result.calibrated)} calibrated"
    reference = _reference(result)
    yield "size", _sizes(result.float_bytes, result.int8_bytes, reference)
    if result.quality is None:
        yield "accuracy", "not measured: there are no samples"
    else:
        yield from (("accuracy", text) for text in quality_rows(result.quality, reference))
        yield "measured on", f"{result.judged_on}: {result.quality.samples}"
        if result.here is not None:
            yield (
                "here",
                f"without VNNI, as on this processor: SQNR of the worst output {result.here.sqnr:.2f} dB",
            )
    yield from (("verified", f"{v.runtime}: {v.status}, {v.summary}") for v in result.verdicts)
    yield from (("correction", text) for text in _correction_rows(result))
    searched = [] if result.search is None else search_rows(result.search)
    yield from (("goal", text) for text in (*searched, *result.mix))
    if result.rescue is not None:
        yield "floor", rescue_row(result.rescue)
    if result.tuning is not None:
        yield from (("autotune", text) for text in tuning_rows(result.tuning))
    if result.speed is not None:
        yield "speed", speed_row(result.speed, result.request.config.threads)
    if result.skipped:
        yield "skipped", counted(result.skipped, "bad sample")
    if result.statistics is not None and not result.request.synthetic:
        yield from _stability_rows(stabilities(result.plan, result.statistics), every_node)
    yield "time", f"{result.seconds:.1f} s"


def _type_rows(result: QuantResult, every_node: bool) -> Iterator[tuple[str, str]]:
    """Yield which nodes are in which types, and why."""
    yield "quantized", "\n".join(_shares(result.plan))
    if types := list(told_types(result.plan)):
        yield "types", "\n".join(types)
    yield from (("float", text) for text in _float_rows(result.plan, every_node))
    if carried := result.plan.passthrough_nodes:
        kinds = ", ".join(f"{n} {op_type}" for op_type, n in Counter(carried.values()).most_common())
        yield "pass-through", f"{kinds}: the runtime moves Q/DQ across them"
    if result.narrowing is not None and result.narrowing.dtype != DataType.FLOAT:
        yield "float type", result.narrowing.dtype.name.lower()
        yield from (("float32", text) for text in _float32_rows(result.narrowing.float32, every_node))


def _reference(result: QuantResult) -> str:
    """Name the model that the result is compared with."""
    return "the given model" if isinstance(result, Requantized) else "float"


def _correction_rows(result: QuantResult) -> Iterator[str]:
    """Yield the effect of each correction, or why there is none."""
    for one in result.corrections:
        yield f"{one.name}: {one.outcome} ({one.seconds:.1f} s)"
    wanted = result.request.config.mode == "static" and result.request.config.correct != ("none",)
    if not result.corrections and wanted:
        yield "none: there are no held-out samples to validate them on"


def _stability_rows(tensors: Mapping[str, Stability], every_tensor: bool) -> Iterator[tuple[str, str]]:
    """Yield whether there was enough data, with the tensors and samples concerned."""
    told = run_stability(tensors)
    yield from (("ranges", sentence) for sentence in told.sentences)
    if every_tensor:
        yield from (("still grew", f"{name}: {tensors[name].growth:.1%}") for name in told.grown)
        yield from (("outlier", f"{sample}: {', '.join(names)}") for sample, names in told.outliers.items())


def _shares(plan: QuantPlan) -> Iterator[str]:
    """Yield how many nodes of each operator type are quantized, and of how many."""
    integers = Counter(plan.integer_nodes.values())
    floats = Counter(node.op_type for node in plan.float_nodes.values())
    return (f"{count} of {count + floats[op_type]} {op_type}" for op_type, count in integers.most_common())


def _float_rows(plan: QuantPlan, every_node: bool) -> Iterator[str]:
    if every_node:
        yield from (f"{name} ({node.op_type}): {node.reason}" for name, node in plan.float_nodes.items())
        return
    kinds = Counter((n.op_type, without_names(n.reason)) for n in plan.float_nodes.values()).most_common()
    yield from (f"{count} {op_type}: {reason}" for (op_type, reason), count in kinds[:FLOAT_ROWS])
    if rest := sum(count for _, count in kinds[FLOAT_ROWS:]):
        yield f"{rest} more: --verbose lists them all"


def _float32_rows(float32: Mapping[str, str], every_node: bool) -> Iterator[str]:
    """Yield the reasons for what stays in float32 among half precision."""
    if every_node:
        yield from (f"{name}: {reason}" for name, reason in float32.items())
        return
    kinds = Counter(map(without_names, float32.values())).most_common()
    yield from (f"{counted(count, 'node')}: {reason}" for reason, count in kinds[:FLOAT_ROWS])
    if rest := sum(count for _, count in kinds[FLOAT_ROWS:]):
        yield f"{rest} more: --verbose lists them all"


def _sizes(before: int, after: int, reference: str = "float") -> str:
    return f"{decimal(before)} -> {decimal(after)}: {after / before:.2f} of {reference}"
