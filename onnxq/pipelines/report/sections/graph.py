"""The section with the graph: nodes coloured by the type that they run in; the page's script draws it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from markupsafe import Markup

from onnxq.pipelines.report.blocks import Blocks, Graph, Paragraph
from onnxq.pipelines.report.evidence.outline import CARRIED, OTHER, Outline
from onnxq.pipelines.report.report import Report

STYLES: Mapping[str, str] = {CARRIED: "carried", OTHER: "other"}
"""Types -> the class that colours them, where the class is not called like the type."""


def graph(report: Report) -> Blocks:
    """Yield the numbers of nodes by type, and the graph."""
    known = report.measured.outline
    if known is None or not known.nodes:
        yield Paragraph(f"Not drawn: {report.measured.missing.get('outline', 'there is no graph to draw')}.")
        return
    counts = Counter(kind for node in known.nodes for _, _, kind in node.members)
    drawn = (
        f"{known.count} nodes in {len(known.nodes)} groups: click one to list its nodes. "
        if known.grouped
        else ""
    )
    hidden = f" {known.hidden} nodes that compute no float numbers are left out." if known.hidden else ""
    steps = "Drag to move, use the buttons to zoom, click a node for its figures."
    yield Paragraph(f"{drawn}{steps}{hidden}", "quiet")
    legend = tuple((kind, STYLES.get(kind, kind), count) for kind, count in counts.most_common())
    yield Graph(legend, _embedded(known, report))


def _embedded(known: Outline, report: Report) -> Markup:
    """The graph as JSON that no name can break out of."""
    sqnr = {each.node: each.sqnr for each in report.measured.layers or () if each.node}
    spent = {} if report.measured.times is None else {n.node: n for n in report.measured.times.nodes}
    nodes = [
        {
            "label": node.label,
            "kind": node.kind,
            "style": STYLES.get(node.kind, node.kind),
            "reads": node.reads,
            "members": [
                [name, op_type, kind, _rounded(sqnr.get(name)), *_times(spent, name)]
                for name, op_type, kind in node.members
            ],
        }
        for node in known.nodes
    ]
    content = json.dumps(nodes, separators=(",", ":"))
    return Markup(content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _rounded(value: float | None) -> float | None:
    return None if value is None or abs(value) == float("inf") else round(value, 1)


def _times(spent: Mapping[str, object], name: str) -> list[float]:
    one = spent.get(name)
    return [] if one is None else [round(getattr(one, part) * 1e3, 3) for part in ("before", "after")]
