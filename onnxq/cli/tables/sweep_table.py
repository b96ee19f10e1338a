"""Print the table of a sweep: one row a job, with its accuracy, size and speed, or its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from onnxq.cli.terminal import OUT

COLUMNS = ("model", "target", "options", "SQNR", "size", "speed-up", "result")


def show_sweep(rows: Sequence[Mapping[str, Any]], page: str, resumed: int) -> None:
    """Print the rows of all jobs, and where the page is.

    Args:
        rows: the rows, in the order of the plan.
        page: the page with all figures.
        resumed: how many jobs were done before.
    """
    table = Table(title=page, title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in COLUMNS[3:6] else "left", overflow="fold")
    for row in rows:
        table.add_row(*row["name"], *_figures(row))
    OUT.print(table)
    failed = sum("error" in row for row in rows)
    OUT.print(f"{len(rows)} jobs: {len(rows) - failed} made, {resumed} of them before; {failed} failed")


def _figures(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if "error" in row:
        first, *_ = str(row["error"]).splitlines() or [""]
        return "", "", "", f"failed: {first}"
    time, base = row.get("milliseconds"), row.get("float_milliseconds")
    return (
        "" if row.get("sqnr") is None else f"{row['sqnr']:.2f} dB",
        f"{row['bytes'] / 1e6:.2f} MB",
        f"{base / time:.2f}" if base and time else "",
        f"{len(row['warnings'])} warnings" if row["warnings"] else "made",
    )
