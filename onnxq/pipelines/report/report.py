"""All that a report tells; `onnxq.pipelines.report.page` makes a page of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrators.statistics import Statistics
from calibrators.statistics.stability import RunStability, run_stability
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.pipelines.report.activations import judged
from onnxq.pipelines.report.goal import Reached


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        model, output: paths of the float and of the int8 model.
        data: where the samples came from, in words; empty if there were none.
        config: the options.
    """

    model: str
    output: str
    data: str
    config: QuantConfig

    @property
    def synthetic(self) -> bool:
        """Whether inputs had to be made up."""
        return not self.data and self.config.from_table is None


@dataclass(frozen=True)
class Accuracy:
    """Of one output, as `onnxq.verify.accuracy.OutputQuality` has it: dB (or NaN), and 0 … 1 (or None)."""

    sqnr: float
    agreement: float | None


@dataclass(frozen=True)
class Found:
    """One thing that is not as it should be.

    Attributes:
        severity: "error" or "warning".
        message: what is so.
        advice: what to do; may be empty.
        nodes: of which it is so; none where the whole model is meant.
    """

    severity: str
    message: str
    advice: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What one checker said of the written model, as `onnxq.verify.Verdict` has it.

    Attributes:
        runtime: who says it: a runtime, or "legality".
        status: "passed", "failed" or "not checked".
        summary: one line.
        found: errors first.
    """

    runtime: str
    status: str
    summary: str
    found: tuple[Found, ...] = ()


@dataclass(frozen=True)
class Corrected:
    """What came of one correction.

    Attributes:
        name: the correction's.
        outcome: in words.
        seconds: what it took.
    """

    name: str
    outcome: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """One quantization.

    Attributes:
        request: what was asked for.
        plan: what was decided, with parameters.
        statistics: None if a table gave the ranges.
        accuracy: by output; empty if it was not measured.
        judged_on, judged: the kind of samples that was measured on, and how many.
        skipped: bad samples.
        warnings: why the result should not be trusted, if so.
        float_bytes, int8_bytes: of the two models.
        seconds: how long it took.
        versions: of programs that took part, by name.
        reached: how the goal was reached; None if there was none.
        checked: what the target's rules and its runtimes said; empty if they were not asked.
        corrected: what was tried to come closer to float, in that order.
    """

    request: Request
    plan: QuantPlan
    statistics: Statistics | None
    accuracy: Mapping[str, Accuracy]
    judged_on: str
    judged: int
    skipped: int
    warnings: Sequence[str]
    float_bytes: int
    int8_bytes: int
    seconds: float
    versions: Mapping[str, str]
    reached: Reached | None = None
    checked: tuple[Checked, ...] = ()
    corrected: tuple[Corrected, ...] = ()

    @property
    def stability(self) -> RunStability | None:
        """Whether the data was enough; None if there was none, or none that is real."""
        if self.statistics is None or self.request.synthetic:
            return None
        return run_stability(judged(self.plan, self.statistics))
