"""The page of a sweep: all figures, and for each model accuracy over size and speed with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from calibrators.atomic import staged
from onnxq.pipelines.report.blocks import Blocks, Cell, Column, Paragraph, Span, Table, Tiles, number, text
from onnxq.pipelines.report.page import rendered
from onnxq.pipelines.report.write import versions

Row = Mapping[str, Any]

WIDTH, HEIGHT, MARGIN = 460, 240, 44

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


def front(rows: Sequence[Row], key: str) -> list[tuple[str, ...]]:
    """Return the names of the jobs on the Pareto front of SQNR over ``key``, from the least ``key`` on.

    Jobs without either figure are left out.
    """
    able = [row for row in rows if row.get("sqnr") is not None and row.get(key) is not None]
    found: list[tuple[str, ...]] = []
    best = -float("inf")
    for row in sorted(able, key=lambda row: (row[key], -row["sqnr"])):
        if row["sqnr"] > best:
            best = row["sqnr"]
            found.append(tuple(row["name"]))
    return found


def _charts(rows: Sequence[Row]) -> Blocks:
    drawn = [
        [text(model), *(_cell(_of(rows, model), axis) for axis in AXES)]
        for model in _models(rows)
        if _of(rows, model)
    ]
    if not drawn:
        yield Paragraph("No job gave a model.")
        return
    yield Paragraph("Up and to the left is better. A line joins the jobs that no other job beats in both.")
    yield Table((Column("model"), *(Column(f"SQNR over {label}") for _, label, _ in AXES)), drawn, "models")


def _cell(rows: Sequence[Row], axis: tuple[str, str, float]) -> Cell:
    key, label, factor = axis
    able = [row for row in rows if row.get("sqnr") is not None and row.get(key) is not None]
    return Cell((chart(able, key, label, factor),)) if able else Cell((Span("not measured"),))


def chart(rows: Sequence[Row], key: str, label: str, factor: float) -> Markup:
    """Draw SQNR over one figure of the jobs, with the Pareto front.

    Args:
        rows: the jobs, at least one, all with both figures.
        key: the figure.
        label: its name with its unit.
        factor: from the figure to this unit.
    """
    across, up = [row[key] * factor for row in rows], [row["sqnr"] for row in rows]
    left, right, low, high = *_ends(across), *_ends(up)

    def place(x: float, y: float) -> tuple[float, float]:
        wide, tall = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        return MARGIN + (x - left) / (right - left) * wide, HEIGHT - MARGIN - (y - low) / (high - low) * tall

    points = {tuple(row["name"]): place(x, y) for row, x, y in zip(rows, across, up, strict=True)}
    best = front(rows, key)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (points[name] for name in best))
    marks = "".join(_dot(name, points[name], name in best) for name in points)
    return Markup(
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="SQNR over {escape(label)}" font-size="11" fill="currentColor">'
        f'<path class="zero" fill="none" d="M{MARGIN} {MARGIN / 2}V{HEIGHT - MARGIN}H{WIDTH - MARGIN / 2}"/>'
        f"{''.join(_ticks((left, right), (low, high)))}"
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>'
        f'<text x="4" y="14">SQNR, dB</text>'
        f'<polyline class="cut" points="{line}"/>{marks}</svg>'
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    room = 0.08 * (max(values) - min(values)) or abs(max(values)) * 0.1 or 1.0
    return min(values) - room, max(values) + room


def _ticks(across: tuple[float, float], up: tuple[float, float]) -> Iterator[str]:
    for share in (0.0, 0.5, 1.0):
        x, y = MARGIN + share * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)
        value = across[0] + share * (across[1] - across[0])
        yield f'<text x="{x:.0f}" y="{HEIGHT - MARGIN + 15}" text-anchor="middle">{value:.4g}</text>'
        value = up[0] + share * (up[1] - up[0])
        yield f'<text x="{MARGIN - 4}" y="{y + 4:.0f}" text-anchor="end">{value:.1f}</text>'


def _dot(name: Sequence[str], place: tuple[float, float], is_best: bool) -> str:
    shown = escape(" · ".join(name[1:]))
    label = f'<text x="{place[0] + 6:.1f}" y="{place[1] - 5:.1f}">{shown}</text>' if is_best else ""
    circle = f'<circle class="bars" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3.5">'
    return f"{circle}<title>{shown}</title></circle>{label}"
