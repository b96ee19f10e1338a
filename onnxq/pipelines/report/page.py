"""Render a report as one HTML page, from the template ``page.html``.

The page loads no other files, and works without its few lines of script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import cast

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from onnxq.pipelines.report.blocks import Block, Blocks
from onnxq.pipelines.report.report import Report
from onnxq.pipelines.report.sections.calibration import calibration
from onnxq.pipelines.report.sections.graph import graph
from onnxq.pipelines.report.sections.layers import layers
from onnxq.pipelines.report.sections.next_steps import commands
from onnxq.pipelines.report.sections.outcome import outcome
from onnxq.pipelines.report.sections.plan import whole_plan
from onnxq.pipelines.report.sections.request import request
from onnxq.pipelines.report.sections.samples import samples
from onnxq.pipelines.report.sections.times import times
from onnxq.pipelines.report.sections.verdicts import verdicts
from onnxq.pipelines.report.sections.weights import weights

_PACKAGE = "onnxq.pipelines.report"

_LIBRARIES = ("cytoscape.min.js", "cytoscape-dagre.min.js")
"""What the graph needs, in the order of loading; see the README beside them."""


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor for links, its heading, and the function that makes its content."""

    anchor: str
    heading: str
    make: Callable[[Report], Blocks]


_SECTIONS = (
    Section("result", "Result", outcome),
    Section("layers", "Error by layer", layers),
    Section("times", "Time by operator", times),
    Section("samples", "Samples", samples),
    Section("graph", "Graph", graph),
    Section("plan", "Plan", whole_plan),
    Section("checks", "Checks", verdicts),
    Section("calibration", "Calibration", calibration),
    Section("weights", "Weights", weights),
    Section("commands", "Commands", commands),
    Section("request", "Configuration", request),
)
"""The sections, in the order of the page."""


def page(report: Report) -> str:
    """Render the whole page."""
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    made = f"{report.request.config.mode} quantization for {report.plan.target}"
    return rendered(
        titles=(Path(report.request.model).name, Path(report.request.output).name),
        subtitle=f"{made} · {when} · onnxq {report.versions['onnxq']}",
        warnings=report.warnings,
        sections=list(_filled(report)),
    )


def rendered(
    *,
    titles: tuple[str, str],
    subtitle: str,
    warnings: Sequence[str],
    sections: Sequence[Mapping[str, object]],
) -> str:
    """Render a page with these contents.

    Args:
        titles: what was given, and what came of it.
        subtitle: the line below.
        warnings: shown first.
        sections: each with an "anchor", a "heading" and "blocks".
    """
    read = [{**section, "blocks": list(cast(Blocks, section["blocks"]))} for section in sections]
    draws = any(block.form == "graph" for section in read for block in cast(list[Block], section["blocks"]))
    return _template().render(
        model=titles[0],
        output=titles[1],
        subtitle=subtitle,
        css=_resource("page.css"),
        theme=_resource("theme.js"),
        script=_resource("page.js"),
        libraries=[_resource(f"vendor/{name}") for name in _LIBRARIES] if draws else [],
        graph_script=_resource("graph.js") if draws else "",
        warnings=warnings,
        sections=read,
    )


def _filled(report: Report) -> Iterator[dict[str, object]]:
    for section in _SECTIONS:
        yield {"anchor": section.anchor, "heading": section.heading, "blocks": section.make(report)}


@cache
def _template() -> Template:
    loader = PackageLoader(_PACKAGE, ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html")


def _resource(name: str) -> Markup:
    return Markup((files(_PACKAGE) / name).read_text("utf-8"))
