"""Types and shapes behind operators that ONNX does not know, from the runtime that does.

One operator of a domain such as ``com.microsoft`` leaves its output without a type, and all that
follows with it: nothing there could be quantized. ONNX Runtime knows the types when it opens a model.
"""

from __future__ import annotations

import logging
import re

import onnx_ir as ir

from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.graph import STANDARD_DOMAIN

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
        changed = [_take(untyped[name], output.type, output.shape) for name, output in found.items()]
        return ir.passes.PassResult(model, modified=any(changed))


def _take(value: ir.Value, kind: str, shape: list[int | str | None]) -> bool:
    """``kind`` as ONNX Runtime spells it: ``tensor(float)``."""
    tensor = _TENSOR.fullmatch(kind)
    if tensor is None or tensor[1].upper() not in ir.DataType.__members__:
        return False
    value.type, value.shape = ir.TensorType(ir.DataType[tensor[1].upper()]), ir.Shape(shape)
    return True
