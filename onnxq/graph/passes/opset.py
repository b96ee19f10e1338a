"""The standard opset to where QuantizeLinear and DequantizeLinear know the number formats that are asked for.

The work is done by ONNX's own converter, in C++ on a protobuf: large weights stay behind meanwhile, so
that a model may be larger than a protobuf can be. A model that is new enough is left as it is.

Where an operator changed its meaning and the converter overlooks it, the old meaning is put back
(Resize, see `_restore_old_resize`) or the model is refused (`MISTRANSLATED`).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.version_converter
import onnx_ir as ir

from onnxq.core.errors import ModelError
from onnxq.core.plan import OPSET, OPSET_OF_BLOCKS
from onnxq.graph.nodes import all_nodes, constant_value, input_at, is_op
from onnxq.graph.passes.shapes import light_proto

MISTRANSLATED = {"Hardmax": 13, "Scan": 9, "GroupNormalization": 21}
"""Operators that mean something else from this opset on, which the converter does not account for."""

OPSET_OF_HARD_SWISH = 14
"""HardSwish says in one node what others say in four."""

_NEEDED_FOR = {
    OPSET: "per-channel int8",
    OPSET_OF_HARD_SWISH: "HardSwish",
    OPSET_OF_BLOCKS: "int4, int16 or a scale a block",
}

RESIZE_IS_NEW = 11
"""Below, Resize and Upsample map coordinates by ``x / scale`` and have no attribute to say so."""


class RaiseOpsetPass(ir.passes.InPlacePass):
    """A model below ``minimum`` is converted to it, and its IR version raised to what that needs."""

    def __init__(self, minimum: int = OPSET) -> None:
        """``minimum``: the lowest opset that will do."""
        super().__init__()
        self.minimum = minimum

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
            "", model.graph.opset_imports.pop("ai.onnx", self.minimum)
        )
        if version < self.minimum:
            model.graph, modified = _convert(model, version, self.minimum), True
            _raise_ir_version(model)
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """The opset is high enough."""
        if model.graph.opset_imports[""] < self.minimum:
            raise ir.passes.PostconditionError(f"opset below {self.minimum}")


def _raise_ir_version(model: ir.Model) -> bool:
    """To what the opset needs, and at least to where initializers need not be inputs (opset 9, IR 4)."""
    opset = onnx.helper.make_opsetid("", max(model.graph.opset_imports.get("", 0), 9))
    needed = onnx.helper.find_min_ir_version_for([opset], ignore_unknown=True)
    raised = model.ir_version < needed
    model.ir_version = max(model.ir_version, needed)
    return raised


def _convert(model: ir.Model, version: int, goal: int) -> ir.Graph:
    """The graph in the new opset, with the tensors of the old one."""
    _refuse_mistranslated(model, version, goal)
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    proto = light_proto(model)
    try:
        converted = onnx.version_converter.convert_version(proto, goal)
        onnx.checker.check_model(converted)  # it passes on operators that the new opset has no more
    except Exception as e:  # whatever the C++ side throws
        raise ModelError(
            f"the model uses opset {version}; {_NEEDED_FOR[goal]} needs {goal}, and ONNX's version "
            f"converter cannot raise it ({e}). Export the model again with opset {goal} or higher."
        ) from e
    graph = ir.from_proto(converted).graph
    for value in list(graph.inputs[len(model.graph.inputs) :]):
        value.const_value = weights[value.name or ""]
        graph.inputs.remove(value)
        graph.register_initializer(value)
    if version < RESIZE_IS_NEW:
        _restore_old_resize(graph, goal)
    return graph


def _refuse_mistranslated(model: ir.Model, version: int, goal: int) -> None:
    for node in all_nodes(model):
        if is_op(node, *MISTRANSLATED) and version < MISTRANSLATED[node.op_type] <= goal:
            raise ModelError(
                f"node {node.name!r}: {node.op_type} of opset {version} means something else in opset "
                f"{goal}, which {_NEEDED_FOR[goal]} needs. Export the model again with that opset or higher."
            )


def _restore_old_resize(graph: ir.Graph, goal: int) -> None:
    """Say of every Resize what an Upsample, or a Resize of opset 10, did without saying.

    Coordinates were mapped by ``x / scale``; the nearest neighbour was rounded down, or up when
    shrinking, as ONNX Runtime does it (the specification left it open).
    """
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if is_op(node, "Resize"):
            mapping = ir.AttrString("coordinate_transformation_mode", "asymmetric")
            rounding = ir.AttrString("nearest_mode", _old_rounding(node, goal))
            node.attributes.update({mapping.name: mapping, rounding.name: rounding})


def _old_rounding(resize: ir.Node, goal: int) -> str:
    stored = constant_value(input_at(resize, 2))
    scales = np.ones(1) if stored is None else stored.astype(np.float64)
    if np.any(scales < 1) and np.any(scales > 1):
        raise ModelError(
            f"node {resize.name!r}: a Resize of opset 10 that shrinks one axis and stretches another has no "
            f"equal in opset {goal}, which {_NEEDED_FOR[goal]} needs. Split it in two, or "
            "export the model again."
        )
    return "ceil" if np.any(scales < 1) else "floor"
