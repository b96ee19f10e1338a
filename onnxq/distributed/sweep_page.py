"""The page of a sweep: all figures, and for each model accuracy over size and speed with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from calibrators.atomic import staged
from onnxq.pipelines.report.blocks import Blocks, Cell, Column, Drawing, Paragraph, Table, Tiles, number, text
from onnxq.pipelines.report.page import rendered
from onnxq.pipelines.report.plots import Axes, Point, plot
from onnxq.pipelines.report.write import versions

Row = Mapping[str, Any]

AXES = (
    ("bytes", "size, MB", 1e-6),
    ("milliseconds", "time of a run, ms", 1.0),
)
"""What accuracy is drawn over: key of the row, label, factor."""

COLUMNS = (
    Column("model"),
    Column("target"),
    Column("options"),
    Column("SQNR, dB", "signal over noise of the worst output, against the float model", numbers=True),
    Column("agreement", "share of equal decisions", numbers=True),
    Column("MB", "size of the file", numbers=True),
    Column("of float", "size, as a share of the float model's", numbers=True),
    Column("ms", "median time of a run on this machine; empty: not timed", numbers=True),
    Column("speed-up", "float time over this time", numbers=True),
    Column("front", "best in size or time: no other job of this model has more accuracy for less"),
    Column("corrections", "those that were kept"),
    Column("s", "seconds that the job took", numbers=True),
)


def write_page(rows: Sequence[Row], path: Path, plan: str) -> None:
    """Write the page, completely or not at all; it loads no other files.

    Args:
        rows: the rows of all jobs.
        path: the file.
        plan: the name of the plan.
    """
    failed = [row for row in rows if "error" in row]
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    sections = [("result", "Result", _result(rows)), ("fronts", "Pareto fronts", _charts(rows))]
    if failed:
        sections.append(("failed", "Failed", iter([_failures(failed)])))
    page = rendered(
        titles=(plan, "sweep"),
        subtitle=f"{len(rows)} jobs · {when} · onnxq {versions()['onnxq']}",
        warnings=[f"{len(failed)} of {len(rows)} jobs failed: see below"] if failed else [],
        sections=[{"anchor": a, "heading": h, "blocks": blocks} for a, h, blocks in sections],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged([path]) as beside:
        beside[path].write_bytes(page.encode("utf-8", "xmlcharrefreplace"))


def _result(rows: Sequence[Row]) -> Blocks:
    made = [row for row in rows if "error" not in row]
    yield Tiles(((str(len(made)), "models made"), (str(len(rows) - len(made)), "failed")))
    best = {name for model in _models(rows) for key, *_ in AXES for name in front(_of(made, model), key)}
    yield Table(COLUMNS, [_cells(row, best) for row in made], "jobs")


def _cells(row: Row, best: set[tuple[str, ...]]) -> list[Cell]:
    size, time, base = row.get("bytes"), row.get("milliseconds"), row.get("float_milliseconds")
    share = size / row["float_bytes"] if size and row.get("float_bytes") else None
    return [
        *(text(str(part)) for part in row["name"]),
        number(row.get("sqnr"), "{:.2f}"),
        number(row.get("agreement"), "{:.4f}"),
        number(size and size / 1e6, "{:.2f}"),
        number(share, "{:.2f}"),
        number(time, "{:.2f}"),
        number(base / time if base and time else None, "{:.2f}"),
        text("front" if tuple(row["name"]) in best else ""),
        text(", ".join(row.get("corrections", ()))),
        number(row.get("seconds"), "{:.1f}"),
    ]


def _failures(rows: Sequence[Row]) -> Table:
    columns = (*COLUMNS[:3], Column("error"))
    return Table(columns, [[*map(text, row["name"]), text(row["error"])] for row in rows], "failed jobs")


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["name"][0] for row in rows))


def _of(rows: Sequence[Row], model: str) -> list[Row]:
    return [row for row in rows if row["name"][0] == model and "error" not in row]


def _measured(rows: Sequence[Row], key: str) -> list[Row]:
    """Return the rows that have both figures of a chart."""
    return [row for row in rows if row.get("sqnr") is not None and row.get(key) is not None]


def front(rows: Sequence[Row], key: str) -> list[tuple[str, ...]]:
    """Return the names of the jobs on the Pareto front of SQNR over ``key``, from the least ``key`` on.

    Jobs without either figure are left out.
    """
    found: list[tuple[str, ...]] = []
    best = -float("inf")
    for row in sorted(_measured(rows, key), key=lambda row: (row[key], -row["sqnr"])):
        if row["sqnr"] > best:
            best = row["sqnr"]
            found.append(tuple(row["name"]))
    return found


def _charts(rows: Sequence[Row]) -> Blocks:
    made = [row for row in rows if "error" not in row]
    if not made:
        yield Paragraph("No job gave a model.")
        return
    yield Paragraph("Up and to the left is better. A line joins the jobs that no other job beats in both.")
    for model in _models(made):
        for key, label, factor in AXES:
            if able := _measured(_of(made, model), key):
                yield Paragraph(f"{model}: SQNR over {label}")
                yield _chart(able, key, label, factor)


def _chart(rows: Sequence[Row], key: str, label: str, factor: float) -> Drawing:
    names, best = [tuple(row["name"]) for row in rows], front(rows, key)
    points = [
        _point(row, row[key] * factor, is_best=name in best) for name, row in zip(names, rows, strict=True)
    ]
    line = [points[names.index(name)] for name in best]
    return Drawing(plot(points, Axes(label, "SQNR, dB", counts=False), line))


def _point(row: Row, across: float, *, is_best: bool) -> Point:
    """Place a job; those of the front stand out, with their names."""
    shown = " · ".join(row["name"][1:])
    return Point(across, row["sqnr"], shown, is_best, shown if is_best else "")
