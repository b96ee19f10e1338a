"""Constants folded, duplicates merged, weights freed from the inputs.

What depends on constants alone is computed now, by onnxscript's folding and ONNX's reference code.

Folding must not blow up the file, and must leave quantization alone:

- the result is small, or no larger than the constants it is made from, or it is (part of) the weight
  or bias of a weighted node, which has to be an initializer to be quantized whatever its size;
- never QuantizeLinear and DequantizeLinear, nor anything random, nor what ONNX's reference code and
  ONNX Runtime compute differently.

Initializers with the same type, shape and bytes become one, so that a tied weight is one weight.

Initializers that are listed as graph inputs too become plain constants.

Up to IR version 3 every weight had to be listed so; later it means a default that a caller may replace.
A model whose weights are replaced at run time cannot be quantized ahead of time, so they are taken as
the constants they nearly always are, with a warning where it could matter.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Hashable

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from onnxq.graph.nodes import STANDARD_DOMAIN, constant_value, is_op
from onnxq.graph.passes._weighted import WEIGHTED_OPS

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


SAMPLE = 64
"""Elements that must agree before whole tensors are hashed."""


class DeduplicateInitializersPass(ir.passes.InPlacePass):
    """The first of equal initializers serves the readers of all; one that is a graph output stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge the equal initializers of every graph; only those that look alike are read in full."""
        merged = [_merge(bucket) for graph in model.graphs() for bucket in _alike(graph)]
        return ir.passes.PassResult(model, modified=any(merged))


def _alike(graph: ir.Graph) -> list[list[ir.Value]]:
    buckets: dict[Hashable, list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        array = constant_value(value)
        if array is not None and value.dtype != ir.DataType.STRING:
            sample = array.reshape(-1)[:: max(1, array.size // SAMPLE)].tobytes()
            buckets[array.dtype, array.shape, sample].append(value)
    return [bucket for bucket in buckets.values() if len(bucket) > 1]


def _merge(values: list[ir.Value]) -> bool:
    first: dict[bytes, ir.Value] = {}
    modified = False
    for value in values:
        kept = first.setdefault(_digest(value), value)
        if kept is not value and not value.is_graph_output():
            value.replace_all_uses_with(kept)
            if value.graph is not None and value.name is not None:
                value.graph.initializers.pop(value.name)
            modified = True
    return modified


def _digest(value: ir.Value) -> bytes:
    """SHA-256 of the stored numbers: equal only for equal bytes."""
    array = np.ascontiguousarray(constant_value(value))
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()


LISTED_BY_RULE = 3
"""The last IR version in which weights are inputs because the format demands it."""


class FreeWeightsFromInputsPass(ir.passes.InPlacePass):
    """The graph inputs that have a value in the file stop being inputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them from the main graph's inputs; the inputs of bodies are part of their operators."""
        listed = [value for value in model.graph.inputs if value.is_initializer()]
        if listed and model.ir_version > LISTED_BY_RULE:
            logger.warning(
                "%d inputs have default values (%s, ...): they become constants and can be given no longer.",
                len(listed),
                listed[0].name,
            )
        for value in listed:
            model.graph.inputs.remove(value)
        return ir.passes.PassResult(model, modified=bool(listed))
