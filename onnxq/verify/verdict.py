"""What a checker says: findings, node by node, and whether the model passed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Severity = Literal["error", "warning"]
Status = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        node: name of the node, empty where the whole model is meant.
        severity: "error": the target refuses it, computes something else, or runs what is quantized in
            float. "warning": it works, but costs something.
        message: what is so.
        advice: what to do.
    """

    node: str
    severity: Severity
    message: str
    advice: str = ""

    def __str__(self) -> str:
        where = f"{self.node}: " if self.node else ""
        return f"{where}{self.message}" + (f" {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Verdict:
    """What one checker says of a model.

    Attributes:
        runtime: who says it: a runtime, or "legality".
        status: "passed" only if it really was checked and there is no error.
        summary: one line.
        findings: errors first.
        counts: figures, by what they count.
    """

    runtime: str
    status: Status
    summary: str
    findings: tuple[Finding, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that made it fail."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def grouped(self) -> tuple[tuple[Finding, tuple[str, ...]], ...]:
        """What was found, once each, with the nodes of which it is so; none if it is the whole model."""
        nodes: dict[Finding, list[str]] = {}
        for finding in self.findings:
            nodes.setdefault(replace(finding, node=""), []).append(finding.node)
        return tuple((finding, tuple(filter(None, names))) for finding, names in nodes.items())


def judged(
    runtime: str, summary: str, findings: Iterable[Finding] = (), counts: Mapping[str, int] | None = None
) -> Verdict:
    """The verdict of a check that took place: failed if there is an error."""
    found = tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.severity != "error"))
    failed = any(finding.severity == "error" for finding in found)
    return Verdict(runtime, "failed" if failed else "passed", summary, found, counts or {})


def refused(runtime: str, message: str, advice: str = "") -> Verdict:
    """The verdict on a model that a runtime does not even take."""
    return judged(runtime, "refuses the model", (Finding("", "error", message, advice),))


def unchecked(runtime: str, why: str) -> Verdict:
    """No verdict: what could not be asked has not passed."""
    return Verdict(runtime, "not checked", why)
