"""Infer types and shapes: by ONNX's inference, by our own rule for Reshape, and by ONNX Runtime.

ONNX Runtime gives the types of operators that ONNX does not know. Shapes stored in the file that contradict
the inputs are removed.
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
from calibrators.onnx_files import load_external, to_proto, type_and_shape
from calibrators.session import open_session
from onnxq.graph.nodes import all_nodes, constant_value, int_attribute, is_op
from onnxq.graph.runtime_operators import is_foreign
from onnxq.graph.walks import producer_of

logger = logging.getLogger(__name__)


class InferShapesPass(ir.passes.InPlacePass):
    """Infer types and shapes of all tensors; those that cannot be inferred stay as they are.

    A loaded model may have types and shapes only for its inputs and outputs. Those stored by the exporter may
    be less precise than what can be inferred after cleaning. Names like ``unk__3`` that an earlier inference
    invented for a size are removed first, because they would hide that two sizes are the same. Names of
    tensors must be unique over all graphs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove invented sizes and infer again; nodes are not changed."""
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
    """Set the inferred type and shape, if there are any (onnx has merged the declared ones into them)."""
    kind, shape = type_and_shape(inferred)
    value.type = kind if kind is not None else value.type
    value.shape = shape if shape is not None else value.shape


def _has_invented_size(shape: ir.Shape | None) -> bool:
    return shape is not None and not all(isinstance(d, int) or is_named(d) for d in shape)


def _known(values: list[ir.Value]) -> list[str]:
    """Write known types and shapes, without invented names (their numbers differ from run to run)."""
    return [
        f"{v.type}{[d if isinstance(d, int) or is_named(d) else None for d in v.shape or ()]}" for v in values
    ]


_TENSOR = re.compile(r"tensor\((\w+)\)")


class InferForeignTypesPass(ir.passes.InPlacePass):
    """Get the types and shapes of outputs of foreign operators in the main graph from ONNX Runtime.

    The output of an operator that ONNX does not know, as those of the domain ``com.microsoft``, has no type
    after ONNX's inference, and so all tensors downstream have none: nothing there could be quantized. ONNX
    Runtime knows the types when it opens a model.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Open the model once with these outputs as graph outputs, if there are any."""
        foreign = [node for node in model.graph if is_foreign(node, model)]
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
    """Set type and shape.

    Args:
        value: the value.
        kind: a type as ONNX Runtime writes it, such as ``tensor(float)``.
        shape: as ONNX Runtime gives it: without sizes for a scalar, and also if the rank is unknown.
    """
    tensor = _TENSOR.fullmatch(kind)
    if tensor is None or tensor[1].upper() not in ir.DataType.__members__:
        return False
    value.type = ir.TensorType(ir.DataType[tensor[1].upper()])
    value.shape = ir.Shape(shape) if shape else None
    return True


class ForgetStaleShapesPass(ir.passes.InPlacePass):
    """Remove all stored shapes inside the model if one contradicts the model's inputs; types are kept.

    When the batch size of an exported model is made dynamic, often only the inputs are changed, and
    ``[1, ...]`` stays stored for every tensor inside. Runtimes ignore such shapes, but constant folding would
    trust them and fix the batch size to 1. A model output whose declared shape contradicts the inputs gets
    the shape that follows from them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Compare the stored shapes with those that follow from the inputs."""
        values = [v for node in all_nodes(model) for v in node.outputs if v.shape is not None]
        follows = _from_inputs_alone(model) if values else {}
        wrong = [v for v in values if _contradict(v.shape, follows.get(v.name or ""))]
        for value in wrong:
            if value in model.graph.outputs:
                _correct(value, follows[value.name or ""])
        stale = any(not value.is_graph_output() for value in wrong)
        for value in values if stale else ():
            if not value.is_graph_output():
                value.shape = None
        return ir.passes.PassResult(model, modified=bool(wrong))


def _correct(output: ir.Value, shape: ir.Shape | None) -> None:
    logger.warning(
        "output %r is declared as %s, but the model's inputs give %s: the declaration is corrected",
        output.name,
        output.shape,
        shape,
    )
    output.shape = shape


def _from_inputs_alone(model: ir.Model) -> dict[str, ir.Shape | None]:
    proto = light_proto(model)
    for graph in graphs(proto.graph):
        del graph.value_info[:]
    for output in proto.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return {name: type_and_shape(kind)[1] for name, kind in inferred_types(proto, careful=True).items()}


def _contradict(noted: ir.Shape | None, follows: ir.Shape | None) -> bool:
    """Whether a stored size differs from the inferred one, or is fixed where that one has a name."""
    if noted is None or follows is None:
        return False
    if len(noted) != len(follows):
        return True
    pairs = zip(noted, follows, strict=True)
    return any(isinstance(n, int) and n != f and (isinstance(f, int) or is_named(f)) for n, f in pairs)


INVENTED = "unk__"
"""Prefix of the names that ONNX's inference gives to unknown sizes."""


LARGE = 1024
"""Number of elements above which an initializer is left out: sizes, axes, scales etc. are smaller."""


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """Convert a model to a protobuf in which large initializers are graph inputs, after the real ones.

    ONNX's C++ tools would copy all weights, and a large model exceeds the 2 GiB that a protobuf can hold.
    """
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > LARGE and not value.is_graph_input():
            del copy.graph.initializers[name]
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            value.const_value = None
            copy.graph.inputs.append(value)
    load_external(copy)
    return to_proto(copy)


UNFOLDING = frozenset(
    {"Range", "ConstantOfShape", "Expand", "Tile", "Pad", "Resize", "Upsample", "OneHot", "EyeLike", "Loop"}
    | {"RandomNormal", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow"}
)
"""Operators that may give a long vector although their inputs are small."""


LONG = 2**20
"""Number of elements of vectors that are too many for data propagation, which takes 140 bytes for each."""


def inferred_types(
    proto: onnx.ModelProto, careful: bool = False, propagate: bool = True
) -> dict[str, onnx.TypeProto]:
    """Infer types with ONNX, by tensor name; the result is empty if the inference fails.

    ONNX also propagates the values of vectors, from which other shapes follow. That is left out where a
    small model has vectors of millions of elements.

    Args:
        proto: the model, without large initializers.
        careful: leave it out also where vectors might be long, but it is not known yet. After the folding of
            constants it is known.
        propagate: if False, leave it out in any case.
    """
    if not propagate:
        return _infer_types(proto, data_prop=False)
    kinds = {node.op_type for graph in graphs(proto.graph) for node in graph.node}
    declared = (info.type for info in _infos(proto))
    doubtful = kinds & UNFOLDING or _vector_elements(declared) > LONG
    known = _infer_types(proto, data_prop=False) if doubtful else {}
    if known and (careful or _vector_elements(known.values()) > LONG):
        return known
    return _infer_types(proto, data_prop=True)


def _infer_types(proto: onnx.ModelProto, data_prop: bool) -> dict[str, onnx.TypeProto]:
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        logger.debug("no shape inference: %s", e)
        return {}
    return {info.name: info.type for info in _infos(inferred)}


def _infos(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    for graph in graphs(proto.graph):
        yield from (*graph.input, *graph.value_info, *graph.output)


def _vector_elements(kinds: Iterable[onnx.TypeProto]) -> int:
    """Count the elements of all tensors with one axis of known size."""
    dims = (kind.tensor_type.shape.dim for kind in kinds)
    return sum(each[0].dim_value for each in dims if len(each) == 1)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(body)


def is_named(dim: int | ir.SymbolicDim) -> bool:
    """Whether a size has a name that the model gives it, not an invented one."""
    return isinstance(dim, ir.SymbolicDim) and dim.value is not None and not dim.value.startswith(INVENTED)


Sizes = list[int | None]
"""The sizes of a shape; None if unknown."""


def guess_reshapes(nodes: Iterable[ir.Node]) -> bool:
    """Set the shapes of Reshape outputs where ONNX's inference gave none; return whether there was any.

    The output has as many dimensions as the second input has numbers. Exporters (Paddle's, TensorFlow's)
    concatenate this shape from sizes of a tensor and constants. If ONNX's inference does not know all of
    these numbers, it loses the rank and the constants as well.
    """
    found = False
    for node in nodes:
        if is_op(node, "Reshape") and node.outputs[0].shape is None:
            sizes = _numbers(node.inputs[1])
            if sizes is not None:
                node.outputs[0].shape = ir.Shape([_size(node, i, size) for i, size in enumerate(sizes)])
                found = True
    return found


def _size(node: ir.Node, index: int, number: int | None) -> int | ir.SymbolicDim | None:
    """Turn a number of a Reshape's shape into a size: 0 keeps the input's size, -1 is unknown."""
    data = node.inputs[0]
    if number == 0 and not int_attribute(node, "allowzero", 0):
        known = data is not None and data.shape is not None and index < len(data.shape)
        return data.shape[index] if known else None  # type: ignore[union-attr,index]
    return None if number is None or number < 0 else number


def _numbers(value: ir.Value | None) -> Sizes | None:
    """Return the numbers of a vector; None if not even their count is known."""
    constant = constant_value(value)
    if constant is not None:
        return [int(number) for number in np.ravel(constant)]
    node = producer_of(value)
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
