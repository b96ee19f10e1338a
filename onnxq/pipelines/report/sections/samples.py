"""The section on single samples: those decided otherwise than in float, and those furthest from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite

from onnxq.pipelines.report.blocks import (
    Blocks,
    Cell,
    Column,
    Paragraph,
    Picture,
    Span,
    Table,
    number,
    text,
)
from onnxq.pipelines.report.evidence.sample_outcomes import SampleOutcome
from onnxq.pipelines.report.report import Report


def samples(report: Report) -> Blocks:
    """Yield which decisions changed into which, then the samples."""
    known = report.measured.samples
    if known is None:
        yield Paragraph(f"Not measured: {report.measured.missing.get('samples', 'no samples were kept')}.")
        return
    if report.request.synthetic:
        yield Paragraph("The samples are synthetic: they say nothing about real use.", "note")
    folder = report.request.data
    if known.decisions:
        changed = sum(known.changes.values())
        yield Paragraph(
            f"{changed} of {known.decisions} decisions on {known.count} samples are not those of float."
        )
    if known.changes:
        yield Table(_CHANGES, _changes(known.changes), "changes")
        yield Paragraph("Samples with another decision; those that float is surest of come first:")
        yield Table(_SAMPLES, [_sample(one, folder) for one in known.changed], "samples decided otherwise")
    if known.worst:
        yield Paragraph("Samples whose outputs are furthest from float:")
        width = len(_SAMPLES) if known.decisions else 2
        rows = [_sample(one, folder)[:width] for one in known.worst]
        yield Table(_SAMPLES[:width], rows, "samples furthest from float")


def _changes(changes: Mapping[tuple[str, int, int], int]) -> list[list[Cell]]:
    return [
        [text(output), number(before, "{}"), number(after, "{}"), number(count, "{}")]
        for (output, before, after), count in changes.items()
    ]


def _sample(one: SampleOutcome, folder: str) -> list[Cell]:
    inside = folder and one.name.startswith(folder + os.sep)
    name = Span(one.name[len(folder) + 1 :] if inside else one.name, title=one.name)
    picture = (Picture(one.picture, f"thumbnail of {one.name}"),) if one.picture else ()
    told = [
        f"{d.output}: class {d.before} became {d.after} (margin {d.margin:.1%} of its scores)"
        for d in one.changed
    ]
    sqnr = number(one.sqnr, "{:.1f} dB") if isfinite(one.sqnr) else text("–")
    return [Cell((*picture, name)), sqnr, Cell(tuple(Span(each, "small") for each in told) or (Span("–"),))]


_CHANGES = (
    Column("output"),
    Column("class in float", numbers=True),
    Column("class now", numbers=True),
    Column("samples", numbers=True),
)
_SAMPLES = (
    Column("sample"),
    Column("SQNR", "of its worst output", numbers=True),
    Column(
        "other decisions",
        "the margin is what the float model's score of its class is above its score of the other one, as a "
        "share of the span of all its scores",
    ),
)
