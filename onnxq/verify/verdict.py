"""The result of a check: findings, node by node, and whether the model passed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Severity = Literal["error", "warning"]
Status = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True)
class Finding:
    """One problem that a check found.

    Attributes:
        node: the name of the node; empty if the whole model is meant.
        severity: "error": the target refuses the model, computes something else, or runs a quantized
            node in float. "warning": it works, but costs time or accuracy.
        message: the problem.
        advice: what the user can do.
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
    """The result of one check of a model.

    Attributes:
        runtime: the check: the name of a runtime, or "legality".
        status: "passed" only if the model was really checked and there is no error.
        summary: the result in one line.
        findings: the problems, errors first.
        counts: figures by name, such as "integer layers".
    """

    runtime: str
    status: Status
    summary: str
    findings: tuple[Finding, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that made the check fail."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def grouped(self) -> tuple[tuple[Finding, tuple[str, ...]], ...]:
        """Each distinct finding with the nodes that have it; no nodes if it is about the whole model."""
        nodes: dict[Finding, list[str]] = {}
        for finding in self.findings:
            nodes.setdefault(replace(finding, node=""), []).append(finding.node)
        return tuple((finding, tuple(filter(None, names))) for finding, names in nodes.items())


def make_verdict(
    runtime: str, summary: str, findings: Iterable[Finding] = (), counts: Mapping[str, int] | None = None
) -> Verdict:
    """Make the verdict of a check that took place: "failed" if there is an error.

    Args:
        runtime: the name of the check.
        summary: the result in one line.
        findings: the problems in any order; repeated ones are merged.
        counts: figures by name.
    """
    found = tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.severity != "error"))
    failed = any(finding.severity == "error" for finding in found)
    return Verdict(runtime, "failed" if failed else "passed", summary, found, counts or {})


def refused(runtime: str, message: str, advice: str = "") -> Verdict:
    """Make the verdict on a model that a runtime cannot load or compile.

    Args:
        runtime: the name of the runtime.
        message: the error.
        advice: what the user can do.
    """
    return make_verdict(runtime, "refuses the model", (Finding("", "error", message, advice),))


def unchecked(runtime: str, why: str) -> Verdict:
    """Make the verdict "not checked" of a check that could not run."""
    return Verdict(runtime, "not checked", why)
