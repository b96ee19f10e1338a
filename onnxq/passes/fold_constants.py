"""What depends on constants alone is computed now, by onnxscript's folding and ONNX's reference code.

Folding must not blow up the file, and must leave quantization alone:

- the result is small, or no larger than the constants it is made from, or it is (part of) the weight
  or bias of a weighted node, which has to be an initializer to be quantized whatever its size;
- never QuantizeLinear and DequantizeLinear, nor anything random, nor what ONNX's reference code and
  ONNX Runtime compute differently.
"""

from __future__ import annotations

import logging
import math

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from onnxq.graph import STANDARD_DOMAIN, is_op
from onnxq.passes._layer import WEIGHTED_OPS

logger = logging.getLogger(__name__)

SMALL = 65_536
"""Elements that may always be stored."""

NO_LIMIT = 2**62
"""`may_be_stored` decides alone."""

NOT_DETERMINED = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
    | {"Dropout"}
)
"""Operators whose result is more than a function of inputs and attributes."""

QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

REFERENCE_DIFFERS = frozenset({"Resize", "Upsample", "MaxUnpool"})

NEVER_FOLDED = NOT_DETERMINED | QUANTIZATION | REFERENCE_DIFFERS

PARAMETER_OPS = (*WEIGHTED_OPS, "BatchNormalization", "LayerNormalization", "InstanceNormalization", "PRelu")


class FoldConstantsPass(ir.passes.InPlacePass):
    """Nodes with constant inputs become initializers, as far as the rule above allows."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold the main graph and all bodies; a node that the folding stumbles over ends it there."""
        try:
            result = fold_constants(
                model,
                onnx_shape_inference=True,
                input_size_limit=NO_LIMIT,
                output_size_limit=NO_LIMIT,
                should_fold=may_be_stored,
            )
        except RuntimeError as e:
            logger.info("constant folding stopped early: %s: %s", e, e.__cause__)
            return ir.passes.PassResult(model, modified=False)
        return ir.passes.PassResult(model, modified=result.modified)


def may_be_stored(node: ir.Node) -> bool:
    """Whether the result of a node with constant inputs may become an initializer."""
    if node.domain != STANDARD_DOMAIN or node.op_type in NEVER_FOLDED:
        return False
    size = _size(node.outputs[0])
    if size is None or len(node.outputs) != 1:
        return False
    read = sum(value.const_value.size for value in node.inputs if value is not None and value.const_value)
    return size <= max(SMALL, read) or _is_parameter(node.outputs[0])


def _size(value: ir.Value) -> int | None:
    """The number of elements, None when the shape is not fully known."""
    if value.shape is None or not value.shape.is_static():
        return None
    return math.prod(value.shape.numpy())


def _is_parameter(value: ir.Value) -> bool:
    """Whether a reader, perhaps behind other nodes on constants, takes it as weight, bias or statistics."""
    todo, seen = [value], {value}
    while todo:
        for use in todo.pop().uses():
            if is_op(use.node, *PARAMETER_OPS):
                if use.idx > 0:
                    return True
            elif len(use.node.outputs) == 1 and _only_constants(use.node, seen):
                seen.add(use.node.outputs[0])
                todo.append(use.node.outputs[0])
    return False


def _only_constants(node: ir.Node, known: set[ir.Value]) -> bool:
    return all(v is None or v in known or v.const_value is not None for v in node.inputs)
