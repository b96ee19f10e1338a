"""Fold constants, merge equal initializers, and make weights that are listed as inputs plain constants."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from calibrators.onnx_files import stored_tensors
from onnxq.graph.half_precision.widen import HALF
from onnxq.graph.nodes import STANDARD_DOMAIN, constant_value, input_at, is_op
from onnxq.graph.operators import MOVING, WEIGHTED
from onnxq.graph.walks import upstream

logger = logging.getLogger(__name__)


GROWTH_SHARE, GROWTH_BYTES = 0.01, 4096
"""The share of all stored bytes, or the bytes, by which folding may let constants grow."""


NODE_BYTES = 200
"""About the bytes of a node in the file: a constant that is no larger may take its place in any case."""


LONGEST_VECTOR = 4096
"""Longer vectors of one number throughout are not taken for parameters of channels."""


ROOM = "onnxq.room"
"""The key of what is left of them among a graph's data for passes, which are not saved."""


LARGE_PARAMETER = 2**27
"""Largest number of elements of a parameter that is made from other constants: 512 MiB in float32."""


NO_LIMIT = 2**62
"""No size limit in onnxscript: `_Room` alone decides."""


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

    Folding must neither enlarge the file nor disturb quantization:

    - A result that is larger than the constants it is made from is stored only if it is small beside the
      whole model, or (part of) a parameter of a node such as a Conv, which has to be an initializer to be
      quantized, and that parameter takes no more bytes in 8 bits than all the constants it is made from, or
      repeats one number.
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
                should_fold=_Room(model).may_be_stored,
            )
        except RuntimeError as e:
            logger.info("constant folding stopped early: %s: %s", e, e.__cause__)
            return ir.passes.PassResult(model, modified=False)
        return ir.passes.PassResult(model, modified=result.modified)


class _Room:
    """The bytes by which the constants of a model may still grow, in all runs of the pass together."""

    def __init__(self, model: ir.Model) -> None:
        stored = sum(tensor.nbytes for tensor in stored_tensors(model))
        self._room = model.graph.meta
        self._room.setdefault(ROOM, max(GROWTH_SHARE * stored, GROWTH_BYTES))

    def may_be_stored(self, node: ir.Node) -> bool:
        """Whether the result of a node with constant inputs may become an initializer."""
        if node.domain != STANDARD_DOMAIN or node.op_type in NEVER_FOLDED:
            return False
        size = _size(node.outputs[0])
        if size is None or len(node.outputs) != 1:
            return False
        growth = size * _item_bytes(node) - _stored_bytes(node.inputs)
        if growth <= NODE_BYTES or _is_placeholder(node, size):
            return True
        if _is_worthwhile_parameter(node.outputs[0], size):
            return True
        fits = bool(growth <= self._room[ROOM])
        self._room[ROOM] -= growth * fits
        return fits


_UNKNOWN_BYTES = 8
"""Taken for an element of unknown type, or a string."""


def _item_bytes(node: ir.Node) -> float:
    """The bytes of an element of the result; those of a widened half are stored in half precision again."""
    source, dtype = input_at(node, 0), node.outputs[0].dtype
    if is_op(node, "Cast") and source is not None and source.dtype in HALF:
        dtype = source.dtype
    return _UNKNOWN_BYTES if dtype in (None, ir.DataType.STRING) else dtype.itemsize


def _stored_bytes(values: Iterable[ir.Value | None]) -> int:
    known = {value: value.const_value for value in values if value is not None}
    return sum(tensor.nbytes for tensor in known.values() if tensor is not None)


def _size(value: ir.Value) -> int | None:
    """Return the number of elements; None if the shape is not fully known."""
    if value.shape is None or not value.shape.is_static():
        return None
    return math.prod(value.shape.numpy())


def _is_placeholder(node: ir.Node, size: int) -> bool:
    """Whether one number throughout stands for trained weights, as in the architectures that onnx ships."""
    if not is_op(node, "ConstantOfShape") or size > LARGE_PARAMETER:
        return False
    value = node.outputs[0]
    if len(value.shape or ()) == 1 and size <= LONGEST_VECTOR:
        return True
    parameter = _parameter(value)
    return parameter is not None and value in upstream(parameter, lambda each: is_op(each, *MOVING))


def _is_worthwhile_parameter(value: ir.Value, size: int) -> bool:
    """Whether the value becomes a parameter that is no larger in 8 bits than the constants it is made from.

    Args:
        value: the result of a node with constant inputs.
        size: its number of elements, taken for that of the parameter if that is unknown.
    """
    parameter = _parameter(value) if size <= LARGE_PARAMETER else None
    return parameter is not None and (_size(parameter) or size) <= _stored_bytes(_sources(parameter))


def _parameter(value: ir.Value) -> ir.Value | None:
    """Find what is read as weight, bias or statistics: the value, or what nodes on constants make of it."""
    todo, seen = [value], {value}
    while todo:
        found = todo.pop()
        for use in found.uses():
            if is_op(use.node, *PARAMETER_OPS):
                if use.idx > 0:
                    return found
            elif len(use.node.outputs) == 1 and _only_constants(use.node, seen):
                seen.add(use.node.outputs[0])
                todo.append(use.node.outputs[0])
    return None


def _sources(value: ir.Value) -> set[ir.Value]:
    """Collect the constants that a value is computed from."""
    todo, seen, sources = [value], {value}, set[ir.Value]()
    while todo:
        found = todo.pop()
        producer = found.producer()
        if found.const_value is not None or producer is None:
            sources.add(found)
            continue
        more = {value for value in producer.inputs if value is not None} - seen
        seen |= more
        todo += more
    return sources


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
