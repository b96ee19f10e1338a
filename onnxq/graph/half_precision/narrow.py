"""Write what a model computes in float32 in half precision, but for some nodes; with a Cast where types meet.

Each node is in one type, and so are its inputs and outputs that its operator lets choose (`half_forms`). A
value that is read in another type than it is computed in gets one Cast, which all such readers share. A
constant is stored in the types that it is read in. QuantizeLinear has the type of what it reads,
DequantizeLinear that of its reader, if half precision holds their scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.plan import OPSET_OF_HALF_SCALES, fits_scale
from onnxq.graph.half_precision.half_forms import (
    CONTROL_FLOW,
    HalfForm,
    half_form,
    is_float32,
)
from onnxq.graph.half_precision.keep_float32 import converted
from onnxq.graph.half_precision.saturate import saturate
from onnxq.graph.half_precision.widen import HALF, OTHERS
from onnxq.graph.nodes import (
    STANDARD_DOMAIN,
    add_initializer,
    all_nodes,
    bodies,
    constant_value,
    input_at,
    insert_after,
    is_op,
    name_of,
    replace_value,
    unique_name,
)
from onnxq.graph.operators import WEIGHTED, spatial_rank
from onnxq.graph.walks import is_read, producer_of

FLOAT = ir.DataType.FLOAT

TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")
"""Attributes that name the type of an output."""


@dataclass(frozen=True)
class Narrowing:
    """What to write in half precision.

    Attributes:
        dtype: float16 or bfloat16; float32 if only graph inputs and outputs change.
        float32: name of each node that stays in float32 -> the reason.
        keep_io: whether graph inputs and outputs keep their types.
    """

    dtype: ir.DataType
    float32: Mapping[str, str]
    keep_io: bool = True


def narrow(model: ir.Model, narrowing: Narrowing) -> None:
    """Convert a model without functions, whose tensors have types, in place."""
    if narrowing.dtype == ir.DataType.FLOAT16:
        saturate(model)
    if narrowing.dtype == FLOAT:
        _widen_io(model)
    else:
        _Narrower(model, narrowing).run()
    remove_casts(model)
    separate_biases(model)


def _widen_io(model: ir.Model) -> None:
    """Let a model that `use_float32` has changed take and give float32; its Casts are left without effect."""
    for value in model.graph.inputs:
        if value.dtype in OTHERS:
            value.type = ir.TensorType(FLOAT)
    for value in model.graph.outputs:
        cast = value.producer()
        if value.dtype in OTHERS and cast is not None and is_op(cast, "Cast"):
            cast.attributes["to"] = ir.AttrInt64("to", FLOAT)
            value.type = ir.TensorType(FLOAT)


class _Narrower:
    """Holds the decision for each node while a model is converted."""

    def __init__(self, model: ir.Model, narrowing: Narrowing) -> None:
        self._model, self._narrowing, self._dtype = model, narrowing, narrowing.dtype
        self._forms: dict[ir.Node, HalfForm] = {}
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._nodes = list(all_nodes(model))
        self._owners = {graph: node for node in self._nodes for graph in bodies(node)}
        values = (value for node in self._nodes for value in node.outputs)
        self._names = {value.name for value in (*values, *model.graph.initializers.values())}

    def run(self) -> None:
        """Decide, change types, and insert the Casts."""
        for node in self._nodes:
            if not _is_pair(node):
                self._decide(node)
        self._decide_separators()
        self._decide_pairs()
        wanted = [(use, self._wanted(*use)) for use in self._uses()]
        ends = [(*end, self._wanted_at_end(*end)) for end in self._ends()]
        self._retype()
        for (node, index), dtype in wanted:
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, self._in_type(value, dtype))
        for graph, index, dtype in ends:
            self._leave(graph, index, dtype)
        self._drop_unread()

    # --- decisions

    def _decide(self, node: ir.Node) -> None:
        form = half_form(node, self._dtype, self._model.graph.opset_imports)
        if form is not None and node.name not in self._narrowing.float32:
            self._forms[node] = form

    def _decide_separators(self) -> None:
        """Decide about nodes that only keep Q and DQ apart from others: they follow these others."""
        for node in filter(_separates, self._nodes):
            value, uses = node.inputs[0], node.outputs[0].uses()
            source = producer_of(value)
            if source is not None and _is_pair(source):
                half = all(self._wanted(use.node, use.idx) == self._dtype for use in uses)
            else:
                half = value is not None and self._computed(value) == self._dtype
            if not half:
                self._forms.pop(node, None)

    def _decide_pairs(self) -> None:
        """Decide about Q and DQ: what reads integers with a scale that does not fit stays in float32."""
        pairs = [node for node in self._nodes if _is_pair(node)]
        opset = self._model.graph.opset_imports[""]
        fitting = [node for node in pairs if node.domain or opset >= OPSET_OF_HALF_SCALES]
        able = [node for node in fitting if self._fits(node.inputs[1])]
        for node in set(pairs).difference(able):
            if node.op_type == "DequantizeLinear":
                for use in node.outputs[0].uses():
                    self._forms.pop(use.node, None)
        for node in able:
            self._round(node.inputs[1])
            if self._is_half_pair(node):
                slots = (0, 1) if node.op_type == "QuantizeLinear" else (1,)
                outputs = () if node.op_type == "QuantizeLinear" else (0,)
                self._forms[node] = HalfForm(frozenset(slots), frozenset(outputs))

    def _fits(self, scale: ir.Value | None) -> bool:
        array = constant_value(scale)
        return is_float32(scale) and array is not None and fits_scale(array, self._dtype)

    def _round(self, scale: ir.Value | None) -> None:
        """Round a scale to half precision: Q and DQ of one tensor may be of different types."""
        array = constant_value(scale)
        assert scale is not None
        assert array is not None
        rounded = converted(array, self._dtype).astype(np.float32)
        scale.const_value = ir.tensor(rounded, name=scale.name)

    def _is_half_pair(self, node: ir.Node) -> bool:
        if node.op_type == "QuantizeLinear":
            value = node.inputs[0]
            return value is not None and self._computed(value) == self._dtype
        output = node.outputs[0]
        if output.is_graph_output():
            return not self._narrowing.keep_io
        return all(self._wanted(use.node, use.idx) == self._dtype for use in output.uses())

    def _computed(self, value: ir.Value) -> ir.DataType:
        """Return the type in which a float32 value will be computed."""
        node = value.producer()
        if node is not None:
            form, index = self._forms.get(node), value.index()
            return self._dtype if form is not None and index in form.outputs else FLOAT
        if value.is_graph_input() and value.graph is self._model.graph:
            return FLOAT if self._narrowing.keep_io else self._dtype
        owner = None if value.graph is None else self._owners.get(value.graph)
        return self._dtype if value.is_graph_input() and owner in self._forms else FLOAT

    def _wanted(self, node: ir.Node, index: int) -> ir.DataType:
        form = self._forms.get(node)
        return self._dtype if form is not None and index in form.inputs else FLOAT

    def _wanted_at_end(self, graph: ir.Graph, index: int) -> ir.DataType:
        if graph is self._model.graph:
            return FLOAT if self._narrowing.keep_io else self._dtype
        return self._dtype if self._owners[graph] in self._forms else FLOAT

    def _uses(self) -> Iterator[tuple[ir.Node, int]]:
        """Yield node and position of each float32 input."""
        for node in self._nodes:
            yield from ((node, i) for i, value in enumerate(node.inputs) if is_float32(value))

    def _ends(self) -> Iterator[tuple[ir.Graph, int]]:
        """Yield graph and position of each float32 output of a graph."""
        for graph in self._model.graphs():
            yield from ((graph, i) for i, value in enumerate(graph.outputs) if is_float32(value))

    # --- changes

    def _retype(self) -> None:
        """Give computed values, and inputs of graphs, their new types."""
        inputs = [value for graph in self._model.graphs() for value in graph.inputs if is_float32(value)]
        computed = [value for node in self._nodes for value in node.outputs if is_float32(value)]
        changed = [
            v for v in (*inputs, *computed) if not v.is_initializer() and self._computed(v) == self._dtype
        ]
        for value in changed:
            value.type = ir.TensorType(self._dtype)
        for node in self._forms:
            if node.op_type not in CONTROL_FLOW:
                _narrow_attributes(node, self._dtype)

    def _in_type(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return ``value`` in a type; all who ask for it get the same."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._made:
            array = constant_value(value)
            if array is None:
                cast = self._cast(value, dtype)
                insert_after(value, cast, value.graph or self._model.graph)
                self._made[value, dtype] = cast.outputs[0]
            else:
                name = self._name(f"{value.name}_{dtype.name.lower()}")
                self._made[value, dtype] = add_initializer(self._model, name, converted(array, dtype))
        return self._made[value, dtype]

    def _leave(self, graph: ir.Graph, index: int, dtype: ir.DataType) -> None:
        """Let an output of a graph leave in a type; those of the main graph keep their names."""
        value = graph.outputs[index]
        if value.dtype == dtype:
            return
        cast = self._cast(value, dtype)
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
        if graph is self._model.graph and value.producer() is not None:
            value.name, cast.outputs[0].name = cast.outputs[0].name, value.name

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Node:
        name = self._name(f"{value.name}_{dtype.name.lower()}")
        cast = ir.node("Cast", [value], attributes={"to": dtype}, name=name)
        made = cast.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
        return cast

    def _name(self, wanted: str) -> str:
        name = unique_name(wanted, self._names)
        self._names.add(name)
        return name

    def _drop_unread(self) -> None:
        """Remove constants that are read in half precision only; those take their names."""
        for (value, _), made in self._made.items():
            if value.is_initializer() and not value.is_graph_input() and not is_read(value):
                name = name_of(value)
                del self._model.graph.initializers[name]
                value.name = None
                made.name = name


def _separates(node: ir.Node) -> bool:
    """Whether the node is a maximum or a sum of one tensor, which computes nothing."""
    return is_op(node, "Max", "Sum") and len(node.inputs) == 1


def _is_pair(node: ir.Node) -> bool:
    """Whether the node is a Q or DQ, of ONNX or of ONNX Runtime, which had 16 bits earlier."""
    return node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain in _PAIR_DOMAINS


_PAIR_DOMAINS = (STANDARD_DOMAIN, "com.microsoft")


def _narrow_attributes(node: ir.Node, dtype: ir.DataType) -> None:
    for name in TYPE_ATTRIBUTES:
        if name in node.attributes and node.attributes[name].value == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, dtype)
    fill = node.attributes.get("value")
    if fill is not None and isinstance(fill.value, ir.TensorProtocol) and fill.value.dtype == FLOAT:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(converted(fill.value.numpy(), dtype)))


def separate_biases(model: ir.Model) -> None:
    """Add biases in half precision by an Add of their own, where layers read integers; in place.

    ONNX Runtime's WeightBiasQuantization would make integers of them, and computes ``bias / scale`` in half
    precision, which overflows. TensorRT builds the same layers from both forms.
    """
    for node in list(model.graph):
        rule = WEIGHTED.get(node.op_type)
        if rule is None or rule.bias is None or not is_op(producer_of(node.inputs[0]), "DequantizeLinear"):
            continue
        bias = input_at(node, rule.bias)
        if bias is not None and bias.dtype in HALF and constant_value(bias) is not None:
            _separate(model, node, rule.bias)


def _separate(model: ir.Model, node: ir.Node, index: int) -> None:
    value, output = node.inputs[index], node.outputs[0]
    bias = constant_value(value)
    assert bias is not None
    spread = bias.reshape(bias.shape[:1] + (1,) * spatial_rank(node)) if bias.ndim == 1 else bias
    shaped = add_initializer(model, f"{name_of(node)}_bias", spread)
    node.resize_inputs(index)  # the bias is the last input of all layers
    add = ir.node("Add", [output, shaped], name=f"{name_of(node)}_bias")
    result = add.outputs[0]
    model.graph.insert_after(node, add)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    add.replace_input_with(0, output)
    result.name, result.type, result.shape = output.name, output.type, output.shape
    output.name = f"{result.name}_before_bias"
    if value is not None and not is_read(value):
        del model.graph.initializers[name_of(value)]


def remove_casts(model: ir.Model) -> None:
    """Remove each Cast to the type that its input has, or had before a Cast to a wider type; in place."""
    for node in list(all_nodes(model)):
        if is_op(node, "Cast") and (source := _same(node)) is not None:
            _bypass(node, source)
    for node in reversed(list(all_nodes(model))):
        if is_op(node, "Cast") and not is_read(node.outputs[0]) and node.graph is not None:
            node.graph.remove(node, safe=True)


def _same(cast: ir.Node) -> ir.Value | None:
    """Return the value before ``cast`` that is equal to its output; None if there is none."""
    value, wanted = cast.inputs[0], cast.attributes.get_int("to", 0)
    if value is None or value.dtype is None:
        return None
    if value.dtype == wanted:
        return value
    before = value.producer()
    source = before.inputs[0] if before is not None and is_op(before, "Cast") else None
    if source is None or source.dtype != wanted or not _is_exact(source.dtype, value.dtype):
        return None
    return source


def _is_exact(narrow_type: ir.DataType, wide: ir.DataType) -> bool:
    """Whether the wide float type holds all numbers of the narrow one."""
    return (
        narrow_type.is_floating_point() and wide.is_floating_point() and narrow_type.bitwidth < wide.bitwidth
    )


def _bypass(cast: ir.Node, source: ir.Value) -> None:
    output, graph = cast.outputs[0], cast.graph
    producer = source.producer()
    if not output.is_graph_output():
        output.replace_all_uses_with(source)
    elif producer is not None and producer.graph is graph and not source.is_graph_output():
        replace_value(output, source)
    else:
        return
    if graph is not None:
        graph.remove(cast, safe=True)
