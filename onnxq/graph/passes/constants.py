"""Fold constants, merge equal initializers, and make weights that are listed as inputs plain constants."""

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
from onnxq.graph.operators import WEIGHTED

logger = logging.getLogger(__name__)


SMALL = 65_536
"""Largest number of elements that may be stored in any case."""


LARGE_PARAMETER = 2**27
"""Largest number of elements of a parameter that is made from smaller constants: 512 MiB in float32.

Trained weights are stored as such. What a few numbers are expanded to holds nothing that was trained, and a
wrong size would take all memory.
"""


NO_LIMIT = 2**62
"""No size limit in onnxscript: `may_be_stored` alone decides."""


NOT_DETERMINED = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
    | {"Dropout"}
)
"""Operators whose result is not determined by inputs and attributes."""


QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


REFERENCE_DIFFERS = frozenset({"Resize", "Upsample", "MaxUnpool"})


NEVER_FOLDED = NOT_DETERMINED | QUANTIZATION | REFERENCE_DIFFERS


PARAMETER_OPS = (*WEIGHTED, "BatchNormalization", "LayerNormalization", "InstanceNormalization", "PRelu")


class FoldConstantsPass(ir.passes.InPlacePass):
    """Compute nodes with constant inputs by ONNX's reference code, and store the results as initializers.

    Folding must neither enlarge the file much nor disturb quantization:

    - The result must be small, or no larger than the constants it is made from, or (part of) a parameter of
      a node such as a Conv, unless it is huge: a weight has to be an initializer to be quantized.
    - QuantizeLinear and DequantizeLinear are never folded, nor random operators, nor operators that ONNX's
      reference code and ONNX Runtime compute differently.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold the main graph and all bodies; if the folding fails at a node, it ends there."""
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
    return size <= max(SMALL, read) or (size <= LARGE_PARAMETER and _is_parameter(node.outputs[0]))


def _size(value: ir.Value) -> int | None:
    """Return the number of elements; None if the shape is not fully known."""
    if value.shape is None or not value.shape.is_static():
        return None
    return math.prod(value.shape.numpy())


def _is_parameter(value: ir.Value) -> bool:
    """Whether the value is read as weight, bias or statistics, directly or after other nodes on constants."""
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
"""Number of elements that must agree before whole tensors are hashed."""


class DeduplicateInitializersPass(ir.passes.InPlacePass):
    """Merge initializers with the same type, shape and bytes, so that a shared weight is stored once.

    An initializer that is a graph output stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge the equal initializers of every graph; whole tensors are read only if samples agree."""
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
    """Compute the SHA-256 of the stored numbers, which is equal only for equal bytes."""
    array = np.ascontiguousarray(constant_value(value))
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()


LISTED_BY_RULE = 3
"""The last IR version in which the format requires weights to be listed as inputs."""


class FreeWeightsFromInputsPass(ir.passes.InPlacePass):
    """Turn initializers that are also listed as graph inputs into plain constants.

    Up to IR version 3 all weights had to be listed as inputs. In later versions a listed initializer is a
    default value that the caller may replace. A model whose weights are replaced at run time cannot be
    quantized ahead of time. So they are taken as constants, which they nearly always are, and in later
    versions a warning is logged.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them from the main graph's inputs; the inputs of bodies are part of their operators."""
        listed = [value for value in model.graph.inputs if value.is_initializer()]
        if listed and model.ir_version > LISTED_BY_RULE:
            logger.warning(
                "%d inputs have default values (%s, ...): they become constants and can no longer be set.",
                len(listed),
                listed[0].name,
            )
        for value in listed:
            model.graph.inputs.remove(value)
        return ir.passes.PassResult(model, modified=bool(listed))
