"""The standard opset to 13, where QuantizeLinear and DequantizeLinear got their per-channel ``axis``.

The work is done by ONNX's own converter, in C++ on a protobuf: large weights stay behind meanwhile, so
that a model may be larger than a protobuf can be. A model that is new enough is left as it is.
"""

from __future__ import annotations

import onnx
import onnx.helper
import onnx.version_converter
import onnx_ir as ir

from onnxq.errors import ModelError

MINIMUM_OPSET = 13
LARGE = 1024
"""Elements above which a weight is not shown to the converter (which reads only sizes, axes and the like)."""


class RaiseOpsetPass(ir.passes.InPlacePass):
    """A model below opset 13 is converted to it, and its IR version raised to what that needs."""

    def requires(self, model: ir.Model) -> None:
        """Initializers are no inputs (older IR versions list them there), and functions are inlined."""
        if any(value.is_initializer() for value in model.graph.inputs) or model.functions:
            raise ir.passes.PreconditionError("initializers among the inputs, or functions left")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert the graph if its opset is too low.

        Raises:
            ModelError: the converter cannot do it.
        """
        modified = _raise_ir_version(model)
        version = model.graph.opset_imports.setdefault(
            "", model.graph.opset_imports.pop("ai.onnx", MINIMUM_OPSET)
        )
        if version < MINIMUM_OPSET:
            model.graph, modified = _convert(model, version), True
            _raise_ir_version(model)
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """The opset is high enough."""
        if model.graph.opset_imports[""] < MINIMUM_OPSET:
            raise ir.passes.PostconditionError(f"opset below {MINIMUM_OPSET}")


def _raise_ir_version(model: ir.Model) -> bool:
    """To what the opset needs, and at least to where initializers need not be inputs (opset 9, IR 4)."""
    opset = onnx.helper.make_opsetid("", max(model.graph.opset_imports.get("", 0), 9))
    needed = onnx.helper.find_min_ir_version_for([opset], ignore_unknown=True)
    raised = model.ir_version < needed
    model.ir_version = max(model.ir_version, needed)
    return raised


def _convert(model: ir.Model, version: int) -> ir.Graph:
    """The graph in the new opset, with the tensors of the old one."""
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    proto = _without_large_weights(model)
    try:
        converted = onnx.version_converter.convert_version(proto, MINIMUM_OPSET)
    except Exception as e:  # whatever the C++ side throws
        raise ModelError(
            f"the model uses opset {version}; per-channel int8 needs {MINIMUM_OPSET}, and ONNX's version "
            f"converter cannot raise it ({e}). Export the model again with opset {MINIMUM_OPSET} or higher."
        ) from e
    graph = ir.from_proto(converted).graph
    inputs = len(model.graph.inputs)
    for value in list(graph.inputs[inputs:]):
        value.const_value = weights[value.name or ""]
    shown, given = graph.inputs[:inputs], graph.inputs[inputs:]
    graph.inputs.clear()
    graph.inputs.extend(shown)
    for value in given:
        graph.register_initializer(value)
    return graph


def _without_large_weights(model: ir.Model) -> onnx.ModelProto:
    """The model as a protobuf in which the large initializers are inputs behind the real ones."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > LARGE:
            del copy.graph.initializers[name]
            value.shape, value.dtype = ir.Shape(value.const_value.shape.numpy()), value.const_value.dtype
            value.const_value = None
            copy.graph.inputs.append(value)
    return ir.to_proto(copy)
