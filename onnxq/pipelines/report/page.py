"""A report as a page: nothing is fetched, and without its few lines of script it reads the same."""

from __future__ import annotations

from datetime import datetime
from importlib.resources import files
from pathlib import Path

from onnxq.pipelines.report.calibration import calibration
from onnxq.pipelines.report.markup import Markup, element, joined
from onnxq.pipelines.report.outcome import result
from onnxq.pipelines.report.plan import whole_plan
from onnxq.pipelines.report.report import Report
from onnxq.pipelines.report.request import request
from onnxq.pipelines.report.verdicts import checks
from onnxq.pipelines.report.weights import weights

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Tells the browser to fetch nothing, whatever the names in the page say."""

_SECTIONS = {
    "result": ("Result", result),
    "plan": ("Plan", whole_plan),
    "checks": ("Checks", checks),
    "calibration": ("Calibration", calibration),
    "weights": ("Weights", weights),
    "request": ("What was asked", request),
}
"""Anchor -> heading, and what makes the section."""


def page(report: Report) -> str:
    """The whole file."""
    sections = [
        element("section", element("h2", heading), make(report), id=anchor)
        for anchor, (heading, make) in _SECTIONS.items()
    ]
    body = element("body", element("header", _top(report)), element("main", _warnings(report), *sections))
    return f"<!DOCTYPE html>\n{element('html', _head(report), body, lang='en')}\n"


def _head(report: Report) -> Markup:
    title = f"{Path(report.request.output).name} · onnxq"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _file("page.css")),
        element("script", _file("page.js"), type="module"),
    )


def _file(name: str) -> Markup:
    return Markup((files("onnxq.pipelines.report") / name).read_text("utf-8"))


def _top(report: Report) -> Markup:
    names = [Path(path).name for path in (report.request.model, report.request.output)]
    links = [element("a", heading, href=f"#{anchor}") for anchor, (heading, _) in _SECTIONS.items()]
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return joined(
        [
            element("h1", names[0], element("span", " → ", class_="quiet"), names[1]),
            element("p", f"int8 for {report.plan.target} · {when} · onnxq {report.versions['onnxq']}"),
            element("nav", *links),
        ]
    )


def _warnings(report: Report) -> Markup:
    boxes = [element("p", element("b", "Warning: "), text) for text in report.warnings]
    return element("div", *boxes, class_="warnings", role="alert") if boxes else Markup()
