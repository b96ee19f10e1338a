"""The result of a quantization, static or dynamic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from markupsafe import Markup
from rich.filesize import decimal

from calibrators.statistics import Statistics
from onnxq.algorithms.autotune.derived_plan import with_activations, without
from onnxq.algorithms.autotune.tuner import Tuning
from onnxq.algorithms.corrections import Effect
from onnxq.algorithms.mixed_precision.noisy_nodes import Rescue
from onnxq.algorithms.mixed_precision.search import Search
from onnxq.calibration.tables.table import Table
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.graph.files import constant_bytes, size_on_disk
from onnxq.graph.generation_files import copy_generation_files
from onnxq.graph.half_precision.narrow import Narrowing
from onnxq.pipelines.report.evidence.material import Evidence
from onnxq.pipelines.report.plain import plain, plan_of, quality_of
from onnxq.pipelines.report.report import Report, Request
from onnxq.pipelines.report.write import versions, write_report
from onnxq.verify.accuracy import Quality
from onnxq.verify.latency import Speed
from onnxq.verify.verdict import Verdict

NEGLIGIBLE_BYTES, NEGLIGIBLE_SHARE = 2**12, 0.01
"""Nodes and scales take some bytes; a file that is larger by both numbers is called larger."""

_LARGER = "LARGER THAN FLOAT: {1:,} bytes instead of {0:,}. {2}."

_TWICE = (
    "Weights that integer and float nodes read are stored in both types, such as a table that is embedding "
    "and last matrix: --exclude one of the nodes"
)

_FEW_WEIGHTS = (
    "Its weights are so few that QuantizeLinear, DequantizeLinear and scales take more than int8 saves: "
    "--exclude the smallest layers"
)

Result = TypeVar("Result", bound="QuantResult")


@dataclass(frozen=True)
class QuantResult:
    """The result of a quantization.

    Attributes:
        request: the files, data and options.
        plan: every quantized edge with its parameters, every float node with its reason.
        make_table: makes `table`, which is for the float model: its ranges are those before corrections. It
            reads all weights.
        quality: accuracy against the float model; None if no sample could be evaluated.
        here: the same on this processor, if ONNX Runtime's integer kernels saturate on it; else None.
        verdicts: what the target's rules and its runtimes say about the written model.
        judged_on: the kind of samples that ``quality`` was measured on.
        skipped: number of bad samples that were skipped.
        warnings: warnings about the result.
        speed: speed of the written model and its original; None if it was not timed.
        statistics: the calibration statistics, which give the ranges of any method; None if nothing was
            calibrated.
        corrections: the effect of each correction on held-out samples, in the order in which they were tried.
        search: how the goal was reached; None if there was none.
        rescue: the nodes that are widened or in float for the sake of the floor; None if it held.
        tuning: the nodes that are kept in float because float is faster; None if nothing was tuned.
        narrowing: what is written in half precision; None: nothing.
        mix: how a goal was reached with weights of several widths, in words.
        evidence: what was measured for the report; None without a report.
        float_bytes, int8_bytes: file sizes, external weights included.
        constant_bytes: bytes of all constants of the written model.
        seconds: duration of the whole quantization.
    """

    from_float: ClassVar[bool] = True
    """Whether the original is a float model, which is larger."""

    request: Request
    plan: QuantPlan
    make_table: Callable[[], Table] = field(repr=False)
    quality: Quality | None
    verdicts: tuple[Verdict, ...]
    judged_on: str
    skipped: int
    warnings: tuple[str, ...]
    speed: Speed | None
    here: Quality | None = None
    statistics: Statistics | None = None
    corrections: tuple[Effect, ...] = ()
    search: Search | None = None
    rescue: Rescue | None = None
    tuning: Tuning | None = None
    narrowing: Narrowing | None = None
    mix: tuple[str, ...] = ()
    evidence: Evidence | None = field(default=None, repr=False)
    float_bytes: int = 0
    int8_bytes: int = 0
    constant_bytes: int = 0
    seconds: float = 0.0

    @property
    def table(self) -> Table:
        """The ranges of the plan, as `onnxq.calibration.tables.table_files` writes them."""
        return self.make_table()

    @property
    def repeatable(self) -> QuantConfig:
        """Options that give the same model on any machine: they exclude the nodes that were kept in float."""
        config = self.request.config
        if self.tuning is not None:
            config = without(config, self.tuning.floats).model_copy(update={"autotune": "off"})
        if self.rescue is not None:
            config = with_activations(without(config, self.rescue.floats), self.rescue.wide)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, which `json.dump` takes; what is not finite is None."""
        return _as_data(self)

    def _repr_html_(self) -> str:
        """Show the main figures in a notebook."""
        return _notebook_table(self)

    @property
    def report(self) -> Report:
        """The content of the report, for `onnxq.pipelines.report`."""
        return Report(
            request=self.request,
            plan=self.plan,
            statistics=self.statistics,
            quality=self.quality,
            judged_on=self.judged_on,
            skipped=self.skipped,
            warnings=self.warnings,
            float_bytes=self.float_bytes,
            int8_bytes=self.int8_bytes,
            seconds=self.seconds,
            versions=versions(),
            search=self.search,
            verdicts=self.verdicts,
            corrections=self.corrections,
            evidence=self.evidence,
            from_float=self.from_float,
            mix=self.mix,
        )


def _as_data(result: QuantResult) -> dict[str, Any]:
    """A quantization: files, options, plan, accuracy, sizes, times, checks, and what was tried."""
    asked = result.request
    return {
        "model": asked.model,
        "output": asked.output,
        "data": asked.data,
        "options": asked.config.model_dump(mode="json"),
        "plan": plan_of(result.plan),
        "quality": quality_of(result.quality),
        "quality_here": quality_of(result.here),
        "judged_on": result.judged_on,
        "verdicts": plain(result.verdicts),
        "speed": plain(result.speed),
        "bytes": {
            "original": result.float_bytes,
            "quantized": result.int8_bytes,
            "constants": result.constant_bytes,
        },
        "corrections": plain(result.corrections),
        "goal": None if result.search is None else _search(result),
        "floor": plain(result.rescue),
        "autotune": plain(result.tuning),
        "skipped": result.skipped,
        "warnings": list(result.warnings),
        "seconds": result.seconds,
        "layers": plain(result.evidence.layers) if result.evidence else None,
        "kernel_times": plain(result.evidence.times) if result.evidence else None,
    }


def _search(result: QuantResult) -> dict[str, Any]:
    assert result.search is not None
    search = result.search
    return {
        "goal": str(search.goal),
        "chosen": plain(search.chosen),
        "curve": plain(search.curve),
        "interrupted": search.interrupted,
    }


def _notebook_table(result: QuantResult) -> str:
    """The main figures as a small HTML table; every text is escaped."""
    plan, quality = result.plan, result.quality
    every = len(plan.integer_nodes) + len(plan.float_nodes)
    rows = {
        "file": result.request.output,
        "target": plan.target,
        "in integers": f"{len(plan.integer_nodes)} of {every} nodes",
        "size": f"{decimal(result.float_bytes)} → {decimal(result.int8_bytes)}",
    }
    if quality is None or result.request.synthetic:
        rows["accuracy"] = "unknown: there were no real samples"
    else:
        if math.isfinite(quality.sqnr):
            rows["SQNR"] = f"{quality.sqnr:.2f} dB (worst output, {result.judged_on})"
        if quality.agreement is not None:
            rows["agreement"] = f"{quality.agreement:.1%}"
    if result.speed is not None:
        rows["speed"] = f"{result.speed.ratio:.2f} times as fast"
    body = [
        Markup("<tr><th style='text-align:left'>{}</th><td>{}</td></tr>").format(*row) for row in rows.items()
    ]
    body += [
        Markup("<tr><th style='text-align:left'>warning</th><td>{}</td></tr>").format(w)
        for w in result.warnings
    ]
    return Markup("<table>{}</table>").format(Markup("").join(body))


def _reason(result: QuantResult, growth: int) -> str:
    """Say why the written model is ``growth`` bytes larger than the float model, and what to do."""
    if 2 * (result.constant_bytes - constant_bytes(result.request.model)) < growth:
        return _FEW_WEIGHTS
    return _TWICE if result.request.config.mode == "dynamic" else f"{_TWICE}, or try --mode dynamic"


def conclude(result: Result, started: float) -> Result:
    """Add the original's size and the time since ``started`` to ``result``; write its report if requested.

    Files that language models need beside them are copied. A file that is larger than that of the float model
    is warned of.

    Raises:
        OnnxqError: the report cannot be written.
    """
    before, after = size_on_disk(result.request.model), result.int8_bytes
    if result.from_float and after - before > max(NEGLIGIBLE_BYTES, NEGLIGIBLE_SHARE * before):
        warning = _LARGER.format(before, after, _reason(result, after - before))
        result = replace(result, warnings=(*result.warnings, warning))
    result = replace(result, float_bytes=before, seconds=time.perf_counter() - started)
    copy_generation_files(result.request.model, result.request.output)
    if result.request.config.report is not None:
        write_report(result.report, result.request.config.report)
    return result
