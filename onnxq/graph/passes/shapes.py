"""Types and shapes: ONNX's inference, ours where it gives up, the runtime's for foreign operators.

Types and shapes of every tensor, by ONNX's own inference.

A loaded model has them for its interface at best, and the exporter's notes on the rest may be vaguer
than what is known after cleaning. Names like ``unk__3`` that an earlier inference invented for a size
are forgotten first: they would hide that two sizes are the same.

Types and shapes behind operators that ONNX does not know, from the runtime that does.

One operator of a domain such as ``com.microsoft`` leaves its output without a type, and all that
follows with it: nothing there could be quantized. ONNX Runtime knows the types when it opens a model.

Shapes noted in the file that contradict the model's inputs are forgotten.

Whoever makes the batch size of an exported model dynamic often changes the inputs alone and leaves
``[1, ...]`` noted on every tensor inside. Runtimes ignore such notes; folding constants would believe
them and make the batch size 1 for good.

A model as a protobuf without its weight: for ONNX's C++ tools, which would copy every byte of it.

A large model also exceeds the 2 GiB that a protobuf can hold.

What a Reshape makes where ONNX's inference gives up: as many dimensions as its second input has numbers.

Exporters (Paddle's, TensorFlow's) join a shape of sizes read off a tensor and of constants. Inference follows
the numbers only as long as it knows them all, and forgets the rank and the constants with the rest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.graph.nodes import STANDARD_DOMAIN, all_nodes, constant_value, int_attribute, is_op


class InferShapesPass(ir.passes.InPlacePass):
    """Fill in what can be inferred; what cannot is left as it was. Names must be unique over all graphs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Forget invented sizes and infer again. Nothing that computes is touched."""
        outputs = [output for node in all_nodes(model) for output in node.outputs]
        before = _known(outputs)
        for value in outputs:
            if not value.is_graph_output() and _has_invented_size(value.shape):
                value.shape = None
        _infer(model, outputs)
        while guess_reshapes(all_nodes(model)):
            _infer(model, outputs)
        return ir.passes.PassResult(model, modified=_known(outputs) != before)


def _infer(model: ir.Model, outputs: Sequence[ir.Value]) -> None:
    inferred = inferred_types(light_proto(model))
    for value in outputs:
        if value.name in inferred:
            _take(value, inferred[value.name])


def _take(value: ir.Value, inferred: onnx.TypeProto) -> None:
    """The inferred type and shape, as far as there are any (onnx merged in what was declared)."""
    kind = ir.serde.deserialize_type_proto_for_type(inferred)
    shape = ir.serde.deserialize_type_proto_for_shape(inferred)
    value.type = kind if kind is not None else value.type
    value.shape = shape if shape is not None else value.shape


def _has_invented_size(shape: ir.Shape | None) -> bool:
    return shape is not None and not all(isinstance(d, int) or is_named(d) for d in shape)


def _known(values: list[ir.Value]) -> list[str]:
    """What is known now, invented names apart (their numbers differ from run to run)."""
    return [
        f"{v.type}{[d if isinstance(d, int) or is_named(d) else None for d in v.shape or ()]}" for v in values
    ]


logger = logging.getLogger(__name__)


_TENSOR = re.compile(r"tensor\((\w+)\)")


class InferForeignTypesPass(ir.passes.InPlacePass):
    """Fill in what is missing behind the outputs of foreign operators of the main graph, if there are any."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Open the model once, with those outputs as outputs of the graph."""
        foreign = [node for node in model.graph if node.domain != STANDARD_DOMAIN]
        untyped = {v.name: v for node in foreign for v in node.outputs if v.name and v.type is None}
        if not untyped:
            return ir.passes.PassResult(model, modified=False)
        try:
            session = open_session(model, outputs=[name for name in untyped if name], optimize=False)
        except CalibrationError as error:
            logger.info("no types of foreign operators: %s", error)
            return ir.passes.PassResult(model, modified=False)
        found = {o.name: o for o in session.get_outputs() if o.name in untyped}
        changed = [_take_foreign(untyped[name], output.type, output.shape) for name, output in found.items()]
        return ir.passes.PassResult(model, modified=any(changed))


def _take_foreign(value: ir.Value, kind: str, shape: list[int | str | None]) -> bool:
    """``kind`` as ONNX Runtime spells it: ``tensor(float)``."""
    tensor = _TENSOR.fullmatch(kind)
    if tensor is None or tensor[1].upper() not in ir.DataType.__members__:
        return False
    value.type, value.shape = ir.TensorType(ir.DataType[tensor[1].upper()]), ir.Shape(shape)
    return True


class ForgetStaleShapesPass(ir.passes.InPlacePass):
    """One contradiction, and no note about a shape inside the model is believed. Types are."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Compare the noted shapes with those that follow from the inputs."""
        outputs = [o for node in all_nodes(model) for o in node.outputs if not o.is_graph_output()]
        noted = {o.name: o for o in outputs if o.shape is not None}
        follows = _from_inputs_alone(model) if noted else {}
        stale = any(_contradict(noted[n].shape, shape) for n, shape in follows.items() if n in noted)
        for value in noted.values() if stale else ():
            value.shape = None
        return ir.passes.PassResult(model, modified=stale)


def _from_inputs_alone(model: ir.Model) -> dict[str, ir.Shape | None]:
    proto = light_proto(model)
    for graph in graphs(proto.graph):
        del graph.value_info[:]
    return {n: ir.serde.deserialize_type_proto_for_shape(t) for n, t in inferred_types(proto).items()}


def _contradict(noted: ir.Shape | None, follows: ir.Shape | None) -> bool:
    """Whether a noted size differs from the one that follows, or is fixed where that one is not."""
    if noted is None or follows is None:
        return False
    if len(noted) != len(follows):
        return True
    pairs = zip(noted, follows, strict=True)
    return any(isinstance(n, int) and n != f and (isinstance(f, int) or is_named(f)) for n, f in pairs)


INVENTED = "unk__"
"""How the names begin that ONNX's inference gives to sizes it knows nothing about."""


LARGE = 1024
"""Elements above which an initializer stays behind: sizes, axes, scales and the like are smaller."""


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """The model in which every large initializer is a graph input, behind the real ones."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > LARGE and not value.is_graph_input():
            del copy.graph.initializers[name]
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            value.const_value = None
            copy.graph.inputs.append(value)
    return ir.to_proto(copy)


def inferred_types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """What ONNX's inference finds out, by tensor name; nothing where it stumbles over a contradiction."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        logger.debug("no shape inference: %s", e)
        return {}
    return {
        info.name: info.type
        for graph in graphs(inferred.graph)
        for info in (*graph.value_info, *graph.output)
    }


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(body)


def is_named(dim: int | ir.SymbolicDim) -> bool:
    """Whether a size has a name that means something: the model's own, not an invented one."""
    return isinstance(dim, ir.SymbolicDim) and dim.value is not None and not dim.value.startswith(INVENTED)


Sizes = list[int | None]
"""Numbers of a shape, None where not known."""


def guess_reshapes(nodes: Iterable[ir.Node]) -> bool:
    """Give the outputs of Reshapes that have no shape one; whether there was any."""
    found = False
    for node in nodes:
        if is_op(node, "Reshape") and node.outputs[0].shape is None:
            sizes = _numbers(node.inputs[1])
            if sizes is not None:
                node.outputs[0].shape = ir.Shape([_size(node, i, size) for i, size in enumerate(sizes)])
                found = True
    return found


def _size(node: ir.Node, index: int, number: int | None) -> int | ir.SymbolicDim | None:
    """What a number means to a Reshape: 0 keeps the size that there is, -1 is whatever is left."""
    data = node.inputs[0]
    if number == 0 and not int_attribute(node, "allowzero", 0):
        known = data is not None and data.shape is not None and index < len(data.shape)
        return data.shape[index] if known else None  # type: ignore[union-attr,index]
    return None if number is None or number < 0 else number


def _numbers(value: ir.Value | None) -> Sizes | None:
    """The numbers of a vector; None if not even their count is known."""
    constant = constant_value(value)
    if constant is not None:
        return [int(number) for number in np.ravel(constant)]
    node = None if value is None else value.producer()
    if is_op(node, "Concat"):
        assert node is not None
        parts = [_numbers(part) for part in node.inputs]
        return None if None in parts else [number for part in parts for number in part or ()]
    if is_op(node, "Cast", "Identity"):
        assert node is not None
        return _numbers(node.inputs[0])
    shape = None if value is None else value.shape
    count = shape[0] if shape is not None and len(shape) == 1 else None
    return [None] * count if isinstance(count, int) else None
