"""Einsum with a constant operand as MatMul, which runtimes and formats of weights know."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import (
    add_initializer,
    all_nodes,
    is_op,
    name_of,
    rank,
    replace_value,
    unused_name,
    unused_node,
)
from onnxq.graph.passes._weighted import FLOATS
from onnxq.graph.passes.shapes import InferShapesPass
from onnxq.graph.stored_numbers import rearranged

ELLIPSIS = "..."

Matrices = dict[Hashable, ir.Value]
"""What an initializer is made of, the order of its axes, and its shape -> the initializer."""


@dataclass(frozen=True)
class Equation:
    """The letters of a product of data and a matrix, or of a stack of matrices.

    Attributes:
        data: the letters of the data, in their order; axes under an ellipsis have digits.
        weight: those of the constant.
        output: those of the output.
    """

    data: str
    weight: str
    output: str

    @property
    def batch(self) -> str:
        """The letters of all three, in the order of the constant: they number the matrices of a stack."""
        return "".join(c for c in self.weight if c in self.data and c in self.output)

    @property
    def summed(self) -> str:
        """The letters that are summed, in the order of the constant."""
        return "".join(c for c in self.weight if c in self.data and c not in self.output)

    @property
    def columns(self) -> str:
        """The letters of the constant and the output, in the order of the constant."""
        return "".join(c for c in self.weight if c not in self.data and c in self.output)

    @property
    def rows(self) -> str:
        """The letters of the data and the output, in the order of the data."""
        return "".join(c for c in self.data if c not in self.weight and c in self.output)

    @property
    def is_product(self) -> bool:
        """Whether each letter has one of these roles, and there are a sum and columns."""
        once = all(len(set(part)) == len(part) for part in (self.data, self.weight, self.output))
        roles = (self.batch + self.summed + self.columns, self.batch + self.summed + self.rows)
        complete = tuple(map(sorted, roles)) == (sorted(self.weight), sorted(self.data))
        known = set(self.output) <= {*self.data, *self.weight}
        return once and complete and known and bool(self.summed) and bool(self.columns)


class EinsumToMatMulPass(ir.passes.InPlacePass):
    """Turn an Einsum of data and a constant into a MatMul, if it is a matrix product, whatever its letters.

    ::

        Einsum(x, W; bsh,hd->bsd)    ->  MatMul(x, W[h, d])
        Einsum(x, W; bsh,hnd->bsnd)  ->  Reshape(MatMul(x, W[h, nd]))
        Einsum(x, W; bsnd,ndh->bsh)  ->  MatMul(Reshape(x), W[nd, h])
        Einsum(x, W; bsh,vh->bsv)    ->  MatMul(x, Transpose(W[v, h]))
        Einsum(x, W; ebh,ehd->ebd)   ->  MatMul(x, W[e, h, d])

    Transposes bring other orders of axes into the form ``[rows, stack, row, summed]`` that MatMul takes. Sums
    over an axis of one operand alone, diagonals, and products without a sum stay, and so does an ellipsis in
    data with an unknown number of axes. The MatMul has the node's name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such Einsum, in bodies too."""
        found = [
            node for node in all_nodes(model) if is_op(node, "Einsum") and _constant_at(node) is not None
        ]
        if any(ELLIPSIS in _text(node) for node in found):
            InferShapesPass()(model)
        made: Matrices = {}
        changed = [_rewrite(model, node, made) for node in found]
        return ir.passes.PassResult(model, modified=any(changed))


def _text(node: ir.Node) -> str:
    return "".join(node.attributes["equation"].as_string().split())


def _constant_at(node: ir.Node) -> int | None:
    """Return the position of the constant beside one computed operand; None if there is none."""
    constants = [v is not None and v.is_initializer() and not v.is_graph_input() for v in node.inputs]
    return constants.index(True) if len(constants) == 2 and sum(constants) == 1 else None


def parse_equation(text: str, index: int, axes: int | None) -> Equation | None:
    """Read the equation of two operands.

    Args:
        text: the equation without spaces.
        index: the position of the constant.
        axes: the number of axes of the data; None if unknown.

    Returns:
        None if the constant has an ellipsis, or the data has one and the number of its axes is unknown.
    """
    inputs, arrow, output = text.partition("->")
    operands = inputs.split(",")
    weight, data = operands[index], operands[1 - index]
    if not arrow:
        letters = inputs.replace(ELLIPSIS, "").replace(",", "")
        output = ELLIPSIS + "".join(sorted(c for c in letters if letters.count(c) == 1))
    hidden = 0
    if ELLIPSIS in inputs:
        if ELLIPSIS in weight or axes is None:
            return None
        hidden = axes - len(data.replace(ELLIPSIS, ""))
    digits = "".join(map(str, range(hidden)))
    return Equation(data.replace(ELLIPSIS, digits), weight, output.replace(ELLIPSIS, digits))


def _rewrite(model: ir.Model, node: ir.Node, made: Matrices) -> bool:
    index = _constant_at(node)
    if index is None:
        return False
    data, weight = node.inputs[1 - index], node.inputs[index]
    equation = parse_equation(_text(node), index, rank(data))
    if equation is None or not equation.is_product or data is None or weight is None:
        return False
    if weight.dtype not in FLOATS or not _same_sizes(equation, data, weight):
        return False
    _Rewriter(model, node, equation, made).rewrite(data, weight)
    return True


def _same_sizes(equation: Equation, data: ir.Value, weight: ir.Value) -> bool:
    """Whether the known sizes of common axes are equal: Einsum broadcasts others."""
    assert weight.shape is not None
    if data.shape is None:
        data.shape = ir.Shape([None] * len(equation.data))
    sizes = dict(zip(equation.weight, weight.shape, strict=True))
    pairs = ((size, sizes.get(c)) for c, size in zip(equation.data, data.shape, strict=True))
    return all(size == other for size, other in pairs if isinstance(size, int) and other is not None)


class _Rewriter:
    """Puts nodes in place of an Einsum."""

    def __init__(self, model: ir.Model, node: ir.Node, equation: Equation, made: Matrices) -> None:
        self._model, self._node, self._equation, self._made = model, node, equation, made

    def rewrite(self, data: ir.Value, weight: ir.Value) -> None:
        """Compute the same with a MatMul, and remove the Einsum."""
        equation = self._equation
        assert weight.const_value is not None
        sizes = dict(zip(equation.weight, weight.const_value.shape.numpy(), strict=True))
        matrices = math.prod(sizes[c] for c in equation.batch)
        stack = [matrices] if equation.batch else []
        outer, row = equation.rows[:-1], equation.rows[-1:]
        copied = [0] * len(outer)
        same = 0 if len(equation.batch) < 2 else -1  # 0 copies the size at the same place
        columns, summed = ([sizes[c] for c in part] for part in (equation.columns, equation.summed))
        data = self._ordered(data, equation.data, outer + equation.batch + row + equation.summed)
        if len(equation.batch) > 1 or len(summed) > 1 or not row:
            data = self._reshaped(data, [*copied, *stack, same if row else 1, math.prod(summed)])
        matrix = self._matrix(weight, stack, (math.prod(summed), math.prod(columns)))
        result = self._added("MatMul", [data, matrix], {}, name_of(self._node))
        batch = [sizes[c] for c in equation.batch]
        if len(equation.batch) > 1 or len(columns) > 1 or not row:
            result = self._reshaped(result, [*copied, *batch, *([same] if row else []), *columns])
        made = outer + equation.batch + row + equation.columns
        result = self._ordered(result, made, equation.output)
        replace_value(self._node.outputs[0], result)
        assert self._node.graph is not None
        self._node.graph.remove(self._node, safe=True)
        if not weight.uses() and not weight.is_graph_output():
            del self._model.graph.initializers[name_of(weight)]

    def _matrix(self, weight: ir.Value, stack: list[int], sizes: tuple[int, int]) -> ir.Value:
        """Return the constant as a matrix, or as a stack: its numbers stay in their order if that is one."""
        equation, letters = self._equation, self._equation.weight
        by_rows = equation.batch + equation.columns + equation.summed
        turned = letters == by_rows
        wanted = by_rows if turned else equation.batch + equation.summed + equation.columns
        shape = [*stack, *(sizes[::-1] if turned else sizes)]
        matrix = self._stored(weight, [letters.index(c) for c in wanted], shape)
        if not turned:
            return matrix
        swap = [*range(len(stack)), len(stack) + 1, len(stack)]
        return self._added("Transpose", [matrix], {"perm": swap})

    def _stored(self, weight: ir.Value, order: list[int], shape: list[int]) -> ir.Value:
        """Return an initializer with other axes; nodes that read it in one way share it."""
        tensor, key = weight.const_value, (weight, *order, *shape)
        assert tensor is not None
        if order == sorted(order) and list(tensor.shape.numpy()) == shape:
            return weight
        if key not in self._made:
            name = unused_name(f"{weight.name}_matrix", self._model)
            made = rearranged(tensor, order, shape)
            value = ir.Value(name=name, type=weight.type, shape=ir.Shape(shape), const_value=made)
            self._model.graph.register_initializer(value)
            self._made[key] = value
        return self._made[key]

    def _ordered(self, value: ir.Value, letters: str, wanted: str) -> ir.Value:
        if letters == wanted:
            return value
        perm = [letters.index(c) for c in wanted]
        turned = self._added("Transpose", [value], {"perm": perm})
        turned.shape = None if value.shape is None else ir.Shape([value.shape[axis] for axis in perm])
        return turned

    def _reshaped(self, value: ir.Value, sizes: list[int]) -> ir.Value:
        name = unused_name(f"{name_of(self._node)}_shape", self._model)
        shape = add_initializer(self._model, name, np.array(sizes, np.int64))
        reshaped = self._added("Reshape", [value, shape], {})
        reshaped.shape = ir.Shape([size if size > 0 else None for size in sizes])
        return reshaped

    def _added(
        self, op_type: str, inputs: list[ir.Value], attributes: dict[str, list[int]], name: str | None = None
    ) -> ir.Value:
        name = name or unused_node(f"{name_of(self._node)}_{op_type}", self._model)
        new = ir.node(op_type, inputs, attributes=attributes, name=name)
        new.outputs[0].name = unused_name(f"{name}_out", self._model)
        new.outputs[0].type = self._node.outputs[0].type or inputs[0].type
        assert self._node.graph is not None
        self._node.graph.insert_before(self._node, new)
        return new.outputs[0]
