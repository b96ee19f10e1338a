"""Bring every QuantizeLinear next to its DequantizeLinear, where integers pass other operators between them.

Tools let operators that only move values work on the integers:

    QuantizeLinear → Transpose → DequantizeLinear  ->  QuantizeLinear → DequantizeLinear → Transpose

Integers that come into the model or leave it are converted by float operators instead, so that the callers'
types stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxq.core.plan import QuantSpec
from onnxq.graph.nodes import (
    add_initializer,
    all_nodes,
    input_at,
    is_op,
    replace_value,
    unused_name,
    unused_node,
)
from onnxq.graph.operators import MOVING, attribute_value, data_inputs
from onnxq.graph.qdq.on_integers import ramp_of, replace_by_hard_sigmoid
from onnxq.graph.qdq.read_qdq import (
    DEQUANTIZE,
    QUANTIZE,
    SCALE,
    ZERO_POINT,
    constant,
    integer_type,
    is_stored,
)
from onnxq.graph.walks import producer_of

MOVERS = MOVING | {"Concat", "MaxPool", "ReduceMax", "ReduceMin", "Resize", "Upsample", "Pad"}
"""Operators that compute the same on integers and on the numbers that these stand for."""

ORDER_ONLY = ("ArgMax", "ArgMin", "Shape", "Size")
"""Operators whose result does not depend on scale and zero point."""


def join_pairs(model: ir.Model) -> None:
    """Move the DequantizeLinear of a model up, to the QuantizeLinear, constant or graph input; in place."""
    for node in list(all_nodes(model)):
        if node.op_type == QUANTIZE:
            _let_read_reals(node)
        elif node.op_type == DEQUANTIZE and (made := ramp_of(node)) is not None:
            replace_by_hard_sigmoid(model, node, made)
    todo = [node for node in all_nodes(model) if node.op_type == DEQUANTIZE]
    while todo:
        node = todo.pop()
        mover = producer_of(node.inputs[0]) if node.graph is not None else None
        if mover is None:
            continue
        if is_op(mover, "Cast") and _is_idle(mover):
            node.replace_input_with(0, mover.inputs[0])
            todo.append(node)
        elif _moves(mover, node) and not is_stored(mover.outputs[0]):
            todo += _lift(node, mover, model)


def _let_read_reals(node: ir.Node) -> None:
    """Give the readers in `ORDER_ONLY` a DequantizeLinear of their own."""
    for use in tuple(node.outputs[0].uses()):
        if is_op(use.node, *ORDER_ONLY):
            before = _like(node, DEQUANTIZE, node.outputs[0])
            before.outputs[0].name = f"{node.outputs[0].name}_{use.node.name}_reals"
            use.node.graph.insert_before(use.node, before)  # type: ignore[union-attr]
            use.node.replace_input_with(use.idx, before.outputs[0])


def _is_idle(node: ir.Node) -> bool:
    """Whether a Cast leaves the type as it is."""
    source = node.inputs[0]
    maker = producer_of(source)
    dtype = integer_type(maker) if maker is not None and maker.op_type == QUANTIZE else None
    known = dtype or (None if source is None else source.dtype)
    return known is not None and node.attributes.get_int("to", 0) == known


def _moves(node: ir.Node, dequantize: ir.Node) -> bool:
    """Whether ``node`` may work on reals: one scale holds for all of its inputs."""
    scale = constant(input_at(dequantize, SCALE))
    if not is_op(node, *MOVERS) or scale is None or scale.size != 1:
        return False
    zero = constant(input_at(dequantize, ZERO_POINT))
    fills = (
        node.op_type == "Pad" and attribute_value(node, "mode") == "constant" and input_at(node, 2) is None
    )
    return not fills or zero is None or not zero.any()


def _lift(node: ir.Node, mover: ir.Node, model: ir.Model) -> Iterator[ir.Node]:
    """Replace ``node`` by nodes like it before ``mover``; yield these, and others that now follow a Q."""
    assert mover.graph is not None
    for index in _data(mover):
        source = mover.inputs[index]
        before = _like(node, DEQUANTIZE, source)
        before.outputs[0].name = unused_name(f"{mover.outputs[0].name}_reals", model)
        mover.graph.insert_before(mover, before)
        mover.replace_input_with(index, before.outputs[0])
        yield before
    for out in mover.outputs if mover.op_type == "Split" else mover.outputs[:1]:
        readers = [use.node for use in out.uses()]
        ours = [each for each in readers if each.op_type == DEQUANTIZE and _alike(each, node)]
        if out.is_graph_output() or len(ours) < len(readers):
            _quantize_again(out, node, model)
        out.type = ir.TensorType(ir.DataType.FLOAT)
        for each in ours:
            _take_place(each.outputs[0], out)
            assert each.graph is not None
            each.graph.remove(each, safe=True)


def _data(mover: ir.Node) -> tuple[int, ...]:
    fill = (2,) if mover.op_type == "Pad" and input_at(mover, 2) is not None else ()
    return (*data_inputs(mover), *fill)


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` be read instead of ``old``, and have its name if that is known outside."""
    if old.is_graph_output():
        new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _quantize_again(out: ir.Value, node: ir.Node, model: ir.Model) -> None:
    """Give those readers of ``out`` that take integers a QuantizeLinear."""
    producer = out.producer()
    assert producer is not None
    assert producer.graph is not None
    again = _like(node, QUANTIZE, out)
    again.outputs[0].type, again.outputs[0].shape = out.type, out.shape
    readers = [use for use in out.uses() if use.node is not again]
    for use in readers:
        if not (use.node.op_type == DEQUANTIZE and _alike(use.node, node)):
            use.node.replace_input_with(use.idx, again.outputs[0])
    name = out.name or "integers"
    if out.is_graph_output():
        outputs = model.graph.outputs
        outputs[outputs.index(out)] = again.outputs[0]
        again.outputs[0].name, out.name = name, unused_name(f"{name}_reals", model)
    else:
        again.outputs[0].name = unused_name(f"{name}_integers", model)
    producer.graph.insert_after(producer, again)


def _alike(one: ir.Node, other: ir.Node) -> bool:
    pairs = [(input_at(one, index), input_at(other, index)) for index in (SCALE, ZERO_POINT)]
    return all(a is b or _equal(a, b) for a, b in pairs)


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    one, other = constant(a), constant(b)
    return one is not None and other is not None and np.array_equal(one, other)


def _like(node: ir.Node, op_type: str, source: ir.Value | None) -> ir.Node:
    """Make a node of ``op_type`` for ``source`` with the scale and the zero point of ``node``."""
    return ir.node(op_type, [source, *node.inputs[1:]], domain=node.domain)


def convert_ends(model: ir.Model) -> None:
    """Replace Q and DQ where the model itself takes or gives integers by float operators; in place.

    ``(x - zero point) * scale`` and ``clip(round(y / scale) + zero point)``: these are their definitions.
    """
    for node in list(model.graph):
        if node.op_type == DEQUANTIZE and node.inputs[0] is not None and node.inputs[0].is_graph_input():
            _dequantize_input(node, model)
        elif node.op_type == QUANTIZE and node.outputs[0].is_graph_output():
            _quantize_output(node, model)


def _dequantize_input(node: ir.Node, model: ir.Model) -> None:
    chain = _Chain(node, model)
    real = chain.add("Cast", node.inputs[0], to=ir.DataType.FLOAT)
    real = chain.add("Sub", real, chain.constant("zero", ZERO_POINT))
    chain.finish(chain.add("Mul", real, chain.constant("scale", SCALE)))


def _quantize_output(node: ir.Node, model: ir.Model) -> None:
    dtype = integer_type(node)
    assert dtype is not None
    chain, limits = _Chain(node, model), QuantSpec(dtype, symmetric=False).limits
    level = chain.add("Div", node.inputs[0], chain.constant("scale", SCALE))
    level = chain.add("Add", chain.add("Round", level), chain.constant("zero", ZERO_POINT))
    ends = [add_initializer(model, f"{node.name}_limit", np.array(end, np.float32)) for end in limits]
    chain.finish(chain.add("Cast", chain.add("Clip", level, *ends), to=dtype))


class _Chain:
    """Nodes that take the place of a QuantizeLinear or DequantizeLinear."""

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        self._node, self._model = node, model

    def add(self, op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        """Add a node, and return its output."""
        assert self._node.graph is not None
        name = unused_node(f"{self._node.name}_{op_type.lower()}", self._model)
        new = ir.node(op_type, inputs, attributes=attributes, name=name)
        self._node.graph.insert_before(self._node, new)
        new.outputs[0].name = unused_name(name, self._model)
        return new.outputs[0]

    def constant(self, name: str, index: int) -> ir.Value:
        """Add an input of the node as a float initializer; a zero point that is left out is 0."""
        array = constant(input_at(self._node, index))
        assert array is not None or index == ZERO_POINT
        values = np.zeros((), np.float32) if array is None else array.astype(np.float32)
        return add_initializer(self._model, f"{self._node.name}_{name}", values)

    def finish(self, new: ir.Value) -> None:
        """Let ``new`` take the place of the node's output."""
        assert self._node.graph is not None
        replace_value(self._node.outputs[0], new)
        self._node.graph.remove(self._node, safe=True)
