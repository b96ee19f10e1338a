"""Tell how to compare each output of a model: by distance or equality, by position or as a set of rows."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from calibrators.data.caches import find_caches
from calibrators.session import as_model
from onnxq.graph.nodes import name_of
from onnxq.graph.operators import WEIGHTED, data_values
from onnxq.graph.passes.names import UniqueNamesPass
from onnxq.graph.passes.shapes import InferShapesPass
from onnxq.verify.outputs.next_token import Vocabulary, find_vocabulary
from onnxq.verify.outputs.row_origin import Rows, selected_rows, selects
from onnxq.verify.outputs.scores import decides

_CHOICES = frozenset(
    (
        *("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Unique", "Multinomial", "Hardmax", "OneHot"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN"),
        *("IsInf", "Bernoulli", "If", "Loop", "Scan", "Shape", "Size", "SequenceLength"),
    )
)
"""Operators that give indices or truth values, and control flow, whose bodies are not looked into."""


@dataclass(frozen=True)
class OutputKind:
    """How to compare an output.

    Attributes:
        measured: by distance: float numbers, and integers computed from float ones, such as a picture's
            bytes. Others are indices, ids or truth values, which are equal or not.
        rows: the rows that a selection made, whose order and number have no meaning; None: by position.
        vocabulary: the ids that the model takes, whose logits the output may be; None if it takes none.
        decides: whether its largest entries are decisions, as the graph tells; None: its values tell.
    """

    measured: bool
    rows: Rows | None = None
    vocabulary: Vocabulary | None = None
    decides: bool | None = None

    def rows_of(self, dims: int) -> Rows | None:
        """Return the rows if an output with so many axes has them."""
        return self.rows if self.rows is not None and self.rows.axis < dims else None


def output_kinds(model: ir.Model | str | os.PathLike[str]) -> Mapping[str, OutputKind]:
    """Map the name of each output of ``model`` to its kind, in order.

    Args:
        model: a model, or the path of one.

    Raises:
        CalibrationError: the file cannot be read.
    """
    loaded = as_model(model)
    outputs, caches = loaded.graph.outputs, {name_of(each.present) for each in find_caches(loaded.graph)}
    if not selects(loaded) and not loaded.functions and all(map(_is_float, outputs)):
        words = find_vocabulary(loaded)
        return {
            name_of(value): OutputKind(measured=True, vocabulary=words, decides=_decides(value, caches))
            for value in outputs
        }
    copy = loaded.clone()
    with suppress(ir.passes.PassError, ValueError):  # what a function gives is compared by position then
        common.InlinePass()(copy)
    ir.passes.Sequential(UniqueNamesPass(), InferShapesPass())(copy)
    rows, words = selected_rows(copy), find_vocabulary(copy)
    return {
        name_of(value): OutputKind(_is_measured(value), rows.get(value), words, _decides(value, caches))
        for value in copy.graph.outputs
    }


def _decides(value: ir.Value, caches: Collection[str]) -> bool | None:
    """Whether the largest entries of an output are decisions: those of keys and values are none."""
    return False if name_of(value) in caches else decides(value)


def float_kinds(model: ir.Model) -> Mapping[str, OutputKind]:
    """Map the name of each float32 output of ``model`` to its kind, in order."""
    floats = {name_of(value) for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT}
    return {name: kind for name, kind in output_kinds(model).items() if name in floats}


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _is_measured(value: ir.Value) -> bool:
    """Whether the values are float numbers, or integers that are converted from computed float numbers."""
    if value.dtype is None or value.dtype == ir.DataType.BOOL:
        return False
    return _is_float(value) or any(
        converted and _is_computed(source) for source, converted in _sources(value)
    )


def _is_computed(source: ir.Value) -> bool:
    """Whether a source is neither a constant nor a choice."""
    node = source.producer()
    return not source.is_initializer() and not (node is not None and _chooses(node, source))


def _sources(value: ir.Value) -> Iterator[tuple[ir.Value, bool]]:
    """Yield where the values come from (inputs, constants, choices, layers with weights).

    Each comes with whether float numbers are converted to integers on the way.
    """
    waiting = [(value, False)]
    seen = set(waiting)
    while waiting:
        value, converted = waiting.pop()
        node = value.producer()
        if node is None or node.domain or node.op_type in WEIGHTED or _chooses(node, value):
            yield value, converted
            continue
        turns = not _is_float(value)
        new = {(each, converted or (turns and _is_float(each))) for each in data_values(node)} - seen
        seen |= new
        waiting.extend(new)


def _chooses(node: ir.Node, value: ir.Value) -> bool:
    indices = node.op_type == "TopK" and value is node.outputs[1]
    return not node.domain and (indices or node.op_type in _CHOICES)
