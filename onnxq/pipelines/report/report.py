"""The content of a report; `onnxq.pipelines.report.page` renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrators.statistics import Statistics
from calibrators.statistics.stability import RunStability, run_stability
from onnxq.algorithms.corrections import Effect
from onnxq.algorithms.mixed_precision.search import Search
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.pipelines.report.activations import stabilities
from onnxq.pipelines.report.evidence.material import Evidence
from onnxq.verify.accuracy import Quality
from onnxq.verify.verdict import Verdict


@dataclass(frozen=True)
class Request:
    """One request to quantize.

    Attributes:
        model, output: paths of the float and of the int8 model.
        data: the source of the samples, in words; empty if there were none.
        config: the options.
    """

    model: str
    output: str
    data: str
    config: QuantConfig

    @property
    def synthetic(self) -> bool:
        """Whether the inputs had to be synthetic."""
        return not self.data and self.config.from_table is None


@dataclass(frozen=True)
class Report:
    """One quantization.

    Attributes:
        request: files, data and options.
        plan: every decision, with parameters.
        statistics: what calibration collected; None if a table gave the ranges.
        quality: accuracy of each output against float; None if it was not measured.
        judged_on: the kind of samples that accuracy was measured on.
        skipped: number of bad samples that were skipped.
        warnings: warnings about the result.
        float_bytes, int8_bytes: sizes of the two models.
        seconds: duration of the whole quantization.
        versions: versions of the programs involved, by name.
        search: how the goal was reached; None if there was none.
        verdicts: what the target's rules and its runtimes say; empty if nothing was checked.
        corrections: the effect of each correction, in the order in which they were tried.
        evidence: what was measured for the report; None if nothing was.
        from_float: whether the original is a float model.
        mix: how a goal was reached with weights of several widths, in words.
    """

    request: Request
    plan: QuantPlan
    statistics: Statistics | None
    quality: Quality | None
    judged_on: str
    skipped: int
    warnings: Sequence[str]
    float_bytes: int
    int8_bytes: int
    seconds: float
    versions: Mapping[str, str]
    search: Search | None = None
    verdicts: tuple[Verdict, ...] = ()
    corrections: tuple[Effect, ...] = ()
    evidence: Evidence | None = None
    from_float: bool = True
    mix: tuple[str, ...] = ()

    @property
    def measured(self) -> Evidence:
        """What was measured for the report, which may be nothing."""
        return self.evidence or Evidence()

    @property
    def stability(self) -> RunStability | None:
        """Whether there was enough data; None without statistics, or with synthetic inputs."""
        if self.statistics is None or self.request.synthetic:
            return None
        return run_stability(stabilities(self.plan, self.statistics))
