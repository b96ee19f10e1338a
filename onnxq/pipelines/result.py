"""What came out of a quantization, static or dynamic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from calibrators.statistics import Statistics
from onnxq.algorithms.autotune.derived_plan import without
from onnxq.algorithms.autotune.tuner import Tuning
from onnxq.algorithms.corrections import Effect
from onnxq.algorithms.mixed_precision.search import Search
from onnxq.calibration.tables.table import Table
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.graph.files import size_on_disk
from onnxq.pipelines.report.report import Report, Request
from onnxq.pipelines.report.write import versions, write_report
from onnxq.verify.accuracy import Quality
from onnxq.verify.latency import Speed
from onnxq.verify.verdict import Verdict

Result = TypeVar("Result", bound="QuantResult")


@dataclass(frozen=True)
class QuantResult:
    """What came out.

    Attributes:
        request: what was asked for.
        plan: every quantized edge with its parameters, every float node with its reason.
        make_table: gives `table`, which is for the float model: its ranges are those before corrections,
            and all its weights are read.
        quality: against the float model; None if there was no sample to judge by.
        verdicts: what the target's rules and its runtimes say of the model that was written.
        judged_on: what kind of samples ``quality`` was measured on.
        skipped: bad samples that were left out.
        warnings: why the result should not be trusted, if so.
        speed: of the written model and its original; None for a target that another runtime runs.
        statistics: what calibration saw; any method's ranges follow from it. None if nothing was calibrated.
        corrections: what each of them gave on held-out samples, in the order in which they were tried.
        search: how the goal was reached; None if there was none.
        tuning: what stays float because it is faster so; None if nobody asked.
        float_bytes, int8_bytes: file sizes, external weights included.
        seconds: how long it took.
    """

    request: Request
    plan: QuantPlan
    make_table: Callable[[], Table] = field(repr=False)
    quality: Quality | None
    verdicts: tuple[Verdict, ...]
    judged_on: str
    skipped: int
    warnings: tuple[str, ...]
    speed: Speed | None
    statistics: Statistics | None = None
    corrections: tuple[Effect, ...] = ()
    search: Search | None = None
    tuning: Tuning | None = None
    float_bytes: int = 0
    int8_bytes: int = 0
    seconds: float = 0.0

    @property
    def table(self) -> Table:
        """The ranges of the plan, as `onnxq.calibration.tables.table_files` writes them."""
        return self.make_table()

    @property
    def repeatable(self) -> QuantConfig:
        """The options that give the same again on any machine: what autotune kept float is excluded."""
        config = self.request.config
        if self.tuning is None:
            return config
        return without(config, self.tuning.floats).model_copy(update={"autotune": False})

    @property
    def report(self) -> Report:
        """All that there is to tell, for `onnxq.pipelines.report`."""
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
        )


def conclude(result: Result, started: float) -> Result:
    """``result`` with the sizes of its files and the time since ``started``; writes its report, if wanted.

    Raises:
        OnnxqError: the report cannot be written.
    """
    result = replace(
        result,
        float_bytes=size_on_disk(result.request.model),
        int8_bytes=size_on_disk(result.request.output),
        seconds=time.perf_counter() - started,
    )
    if result.request.config.report is not None:
        write_report(result.report, result.request.config.report)
    return result
