"""The section on the goal: the cost of reaching it, and the results of trials with other costs."""

from __future__ import annotations

from onnxq.algorithms.mixed_precision.search import Search
from onnxq.algorithms.mixed_precision.trials import TrialResult
from onnxq.pipelines.report.blocks import Blocks, Cell, Column, Drawing, Paragraph, Table, number, text
from onnxq.pipelines.report.plots import Axes, Point, plot


def goal(search: Search | None) -> Blocks:
    """Yield the trade-off between cost and accuracy; nothing without a goal."""
    if search is None:
        return
    chosen = search.chosen
    wider = f" and {len(chosen.widened)} with wider weights" if chosen.widened else ""
    if chosen.wide_activations:
        wider += f" and {len(chosen.wide_activations)} with wider activations"
    trials = search.curve
    told = f"{search.goal} holds with {len(chosen.floats)} more nodes in float{wider}. Other trials:"
    yield Paragraph(told)
    if len(trials) > 1:
        yield Drawing(plot([_point(search, trial) for trial in trials], _axes(search)))
    rows = (_row(trial, is_chosen=trial == chosen) for trial in trials)
    yield Table(_COLUMNS, rows, "trials")


def _axes(search: Search) -> Axes:
    unit = ", dB" if search.goal.name == "sqnr" else ""
    across = "changed nodes: kept in float, or with wider types"
    return Axes(across, f"{search.goal.name}{unit}", counts=False)


def _point(search: Search, trial: TrialResult) -> Point:
    changed = len({*trial.floats, *trial.widened, *trial.wide_activations})
    speed = "" if trial.speed is None else f", {trial.speed:.2f} times as fast"
    told = f"{changed} nodes changed: {trial.value:.4g}, constants {trial.size / 1e6:.2f} MB{speed}"
    is_chosen = trial == search.chosen
    return Point(changed, trial.value, told, is_chosen, "chosen" if is_chosen else "")


def _row(trial: TrialResult, *, is_chosen: bool) -> list[Cell]:
    return [
        number(len(trial.floats), "{}"),
        number(len(trial.widened), "{}"),
        number(len(trial.wide_activations), "{}"),
        number(trial.value),
        number(trial.sqnr, "{:.2f} dB"),
        number(trial.agreement, "{:.1%}"),
        number(trial.size / 1e6, "{:.2f} MB"),
        number(trial.speed, "{:.2f}"),
        text("chosen" if is_chosen else ""),
    ]


_COLUMNS = (
    Column("nodes kept in float", numbers=True),
    Column("with wider weights", "nodes with weights of a wider type than requested", numbers=True),
    Column("with wider activations", "nodes with activations of a wider type than requested", numbers=True),
    Column(
        "goal's metric",
        "for agreement: the expected value beyond these samples, less its standard error",
        numbers=True,
    ),
    Column("SQNR", numbers=True),
    Column("agreement", "as counted on the held-out samples", numbers=True),
    Column("constants", "their bytes in the file", numbers=True),
    Column("speed", "times as fast as the float model", numbers=True),
    Column(""),
)
