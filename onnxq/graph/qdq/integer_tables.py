"""Look up the rows of an embedding table in integers: the file holds a quarter of the bytes.

    Gather(table, i)  ->  Mul(Cast(Gather(table_quantized, i)), Gather(scales, i))

Rows have 8 bits and one scale each. Where the table is a quantized weight too (tied), they are the same
integers as those of the weight, and stored once (see `share_transposed`), if the weight has 8 bits and its
scales too, and no correction has changed it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.numerics import dequantize, params_from_range, quantize, weight_range
from onnxq.core.plan import QuantParams, QuantPlan, QuantSpec
from onnxq.graph.nodes import (
    add_initializer,
    constant_value,
    int_attribute,
    is_op,
    name_of,
    replace_value,
    unused_name,
    unused_node,
)
from onnxq.graph.share_transposed import LEAST

ROWS = QuantSpec(ir.DataType.INT8, symmetric=True, axis=0, narrow_range=True)
"""The number format of rows."""

LEAST_SQNR = 30.0
"""The least SQNR of the median column of a table, in dB: activations in 8 bits make as much noise.

It is missed where some columns are far larger than the others.
"""


def tied_tables(
    graph: ir.Graph, same: Mapping[ir.Value, ir.Value], weights: Mapping[str, str]
) -> Iterator[tuple[ir.Node, str]]:
    """Yield each look-up of rows in a quantized weight, and the group of the weight.

    Args:
        graph: the main graph.
        same: weight -> the table that it is the transpose of.
        weights: name of a quantized weight -> its group.
    """
    groups = {name_of(table): weights[name_of(w)] for w, table in same.items() if name_of(w) in weights}
    groups |= weights
    for node, table in _look_ups(graph):
        if name_of(table) in groups:
            yield node, groups[name_of(table)]


def lone_tables(graph: ir.Graph, same: Mapping[ir.Value, ir.Value]) -> Iterator[ir.Node]:
    """Yield each look-up of rows in a table that 8 bits hold well, and that nothing else reads.

    Args:
        graph: the main graph.
        same: as for `tied_tables`.
    """
    found = dict(_look_ups(graph))
    tied = {*same, *same.values()}
    good = {
        table: table not in tied and all(use.node in found for use in table.uses()) and _is_accurate(table)
        for table in dict.fromkeys(found.values())
    }
    yield from (node for node, table in found.items() if good[table])


def _look_ups(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Yield each Gather of rows of a constant float matrix that is worth it, and the matrix."""
    for node in graph:
        table = node.inputs[0] if is_op(node, "Gather") else None
        array = constant_value(table)
        if table is None or array is None or array.ndim != 2 or array.size < LEAST:
            continue
        if table.dtype == ir.DataType.FLOAT and not int_attribute(node, "axis", 0):
            yield node, table


def _is_accurate(table: ir.Value) -> bool:
    """Whether 8 bits hold at least half of the columns well."""
    array = np.asarray(constant_value(table), np.float32)
    if not np.isfinite(array).all():
        return False
    params = params_from_range(*weight_range(array, ROWS), ROWS)
    errors = dequantize(quantize(array, params, ROWS), params, ROWS) - array
    signal, noise = (np.square(values, dtype=np.float64).sum(axis=0) for values in (array, errors))
    return bool((noise <= signal * 10 ** (-LEAST_SQNR / 10)).mean() >= 0.5)


def look_up_integers(model: ir.Model, plan: QuantPlan, weights: Mapping[str, ir.Value]) -> None:
    """Let the Gathers of ``plan.integer_tables`` look up integers.

    Args:
        model: the model; it is changed.
        plan: a plan with parameters.
        weights: name of a quantized weight -> its integers as they are stored.
    """
    made: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in [node for node in model.graph if node.name in plan.integer_tables]:
        table = node.inputs[0]
        assert table is not None
        if table not in made:
            made[table] = _stored(model, table, plan, plan.integer_tables[name_of(node)])
            same = weights.get(name_of(table))
            if same is not None and _is_equal(same, made[table][0]):
                model.graph.initializers.pop(name_of(made[table][0]))
                made[table] = same, made[table][1]
        _rewrite(model, node, *made[table])


def _is_equal(one: ir.Value, other: ir.Value) -> bool:
    arrays = [constant_value(value) for value in (one, other)]
    return all(array is not None for array in arrays) and np.array_equal(*arrays)  # type: ignore[arg-type]


def _stored(model: ir.Model, table: ir.Value, plan: QuantPlan, group: str) -> tuple[ir.Value, ir.Value]:
    """Store the integers, and one scale per row."""
    array = constant_value(table)
    assert array is not None
    shared = _shared_params(model, array, plan, group) if group else None
    params = shared or params_from_range(*weight_range(array, ROWS), ROWS)
    scales = np.broadcast_to(params.scale.reshape(-1), len(array)).reshape(-1, 1)
    names = [unused_name(f"{table.name}_rows_{part}", model) for part in ("quantized", "scale")]
    integers = add_initializer(model, names[0], quantize(array, params, ROWS))
    return integers, add_initializer(model, names[1], scales)


def _shared_params(
    model: ir.Model, array: NDArray[np.generic], plan: QuantPlan, group: str
) -> QuantParams | None:
    """Return the parameters of the weight if they suit the rows, and the weight still has their values."""
    spec, params = plan.groups[group].spec, plan.params[group]
    weight = constant_value(model.graph.initializers.get(plan.groups[group].tensors[0]))
    if weight is None or replace(spec, axis=ROWS.axis, reduce_bits=0) != ROWS:
        return None
    rows = weight if weight is array or weight.shape == array.shape else weight.T
    by_row = params.scale.size in (1, len(array))
    return params if by_row and np.array_equal(rows, array) else None


def _rewrite(model: ir.Model, gather: ir.Node, integers: ir.Value, scales: ir.Value) -> None:
    name, indices = name_of(gather), gather.inputs[1]
    found = [ir.node("Gather", [source, indices], name=name) for source in (integers, scales)]
    cast = ir.node("Cast", found[0].outputs, {"to": ir.DataType.FLOAT}, name=f"{name}_Cast")
    product = ir.node("Mul", [cast.outputs[0], found[1].outputs[0]], name=f"{name}_Mul")
    nodes = [*found, cast, product]
    model.graph.insert_before(gather, nodes)
    replace_value(gather.outputs[0], product.outputs[0])
    model.graph.remove(gather, safe=True)
    for node in nodes:
        node.name = unused_node(node.name or name, model) if node is not found[0] else name
        if node is not product:
            node.outputs[0].name = unused_name(f"{node.name}_out", model)
