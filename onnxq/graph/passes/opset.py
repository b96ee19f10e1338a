"""Raise the standard opset so that QuantizeLinear and DequantizeLinear support the requested number formats.

ONNX's own converter does the work, in C++ on a protobuf. Large weights are left out meanwhile, so a model may
be larger than a protobuf can be. A model whose opset is high enough is not changed.

The converter overlooks that some operators changed their meaning. For Resize the old meaning is restored
(see `_restore_old_resize`); models with other such operators are refused (`MISTRANSLATED`).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.version_converter
import onnx_ir as ir

from calibrators.errors import CalibrationError
from calibrators.onnx_files import from_proto
from calibrators.session import open_session
from onnxq.core.errors import ModelError
from onnxq.core.plan import OPSET, OPSET_OF_BLOCKS, OPSET_OF_HALF_SCALES
from onnxq.graph.nodes import all_nodes, constant_value, input_at, is_op, name_of
from onnxq.graph.passes.shapes import light_proto
from onnxq.graph.runtime_operators import put_back, runtime_nodes, set_apart

MISTRANSLATED = {"Hardmax": 13, "Scan": 9, "GroupNormalization": 21}
"""Operator -> opset in which its meaning changed without the converter taking that into account."""

OPSET_OF_HARD_SWISH = 14
"""The opset in which ONNX got HardSwish, one node instead of four."""

OPSET_OF_BFLOAT16 = 22
"""The opset in which Conv, pooling and others got bfloat16."""

OPSETS = {ir.DataType.FLOAT16: OPSET_OF_HALF_SCALES, ir.DataType.BFLOAT16: OPSET_OF_BFLOAT16}
"""Half-precision type -> the lowest opset in which it can surround integers."""

_NEEDED_FOR = {
    OPSET: "per-channel int8",
    OPSET_OF_HARD_SWISH: "HardSwish",
    OPSET_OF_HALF_SCALES: "a float type other than float32 beside the integers",
    OPSET_OF_BLOCKS: "int4, int16 or per-block scales",
    OPSET_OF_BFLOAT16: "bfloat16",
}

RESIZE_IS_NEW = 11
"""The opset below which Resize and Upsample map coordinates by ``x / scale``, without an attribute for it."""


class RaiseOpsetPass(ir.passes.InPlacePass):
    """Convert a model with a lower opset to ``minimum``, and raise its IR version as needed."""

    def __init__(self, minimum: int = OPSET) -> None:
        """Set ``minimum``, the lowest acceptable opset."""
        super().__init__()
        self.minimum = minimum

    def requires(self, model: ir.Model) -> None:
        """Check that initializers are not listed as inputs, and that functions are inlined."""
        if any(value.is_initializer() for value in model.graph.inputs) or model.functions:
            raise ir.passes.PreconditionError("initializers among the inputs, or functions left")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert the graph if its opset is too low.

        Raises:
            ModelError: the converter cannot convert the model, or the runtime lacks an operator afterwards.
        """
        modified = _raise_ir_version(model)
        version = model.graph.opset_imports.setdefault(
            "", model.graph.opset_imports.pop("ai.onnx", self.minimum)
        )
        if version < self.minimum:
            model.graph, modified = _convert(model, version, self.minimum), True
            _raise_ir_version(model)
            _check_runtime_operators(model, version)
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """Check that the opset is high enough."""
        if model.graph.opset_imports[""] < self.minimum:
            raise ir.passes.PostconditionError(f"opset below {self.minimum}")


def _raise_ir_version(model: ir.Model) -> bool:
    """Raise the IR version as the opset needs, at least to 4 (opset 9): initializers need not be inputs."""
    opset = onnx.helper.make_opsetid("", max(model.graph.opset_imports.get("", 0), 9))
    needed = onnx.helper.find_min_ir_version_for([opset], ignore_unknown=True)
    raised = model.ir_version < needed
    model.ir_version = max(model.ir_version, needed)
    return raised


def _convert(model: ir.Model, version: int, goal: int) -> ir.Graph:
    """Convert the graph to the new opset; it keeps the weight tensors of the old one."""
    _refuse_mistranslated(model, version, goal)
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    proto = light_proto(set_apart(model))
    try:
        converted = onnx.version_converter.convert_version(proto, goal)
        onnx.checker.check_model(converted)  # the converter keeps operators that the new opset lacks
    except Exception as e:  # the C++ code may raise anything
        raise ModelError(
            f"the model uses opset {version}; {_NEEDED_FOR[goal]} needs {goal}, and ONNX's version "
            f"converter cannot raise it ({e}). Export the model again with opset {goal} or higher."
        ) from e
    graph = from_proto(converted).graph
    put_back(graph)
    for value in list(graph.inputs[len(model.graph.inputs) :]):
        value.const_value = weights[name_of(value)]
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


def _check_runtime_operators(model: ir.Model, version: int) -> None:
    """Check that operators that only ONNX Runtime knows still exist in the new opset: some were removed."""
    if not (nodes := runtime_nodes(model)):
        return
    try:
        open_session(model, optimize=False)
    except CalibrationError as e:
        goal, names = model.graph.opset_imports[""], sorted({node.op_type for node in nodes})
        raise ModelError(
            f"the model uses opset {version} with {', '.join(names)}, which ONNX does not define; "
            f"{_NEEDED_FOR[goal]} needs opset {goal}, and with that ONNX Runtime does not take the model "
            f"({e}). Export the model again with opset {goal} or higher."
        ) from e


def _restore_old_resize(graph: ir.Graph, goal: int) -> None:
    """Give every Resize the attributes that an Upsample, or a Resize of opset 10, implied.

    Coordinates were mapped by ``x / scale``. The nearest neighbour was rounded down, or up when shrinking, as
    in ONNX Runtime (the specification left it open).
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
            f"node {resize.name!r}: a Resize of opset 10 that shrinks one axis and enlarges another has no "
            f"equivalent in opset {goal}, which {_NEEDED_FOR[goal]} needs. Split it in two, or "
            "export the model again."
        )
    return "ceil" if np.any(scales < 1) else "floor"
