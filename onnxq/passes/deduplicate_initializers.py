"""Initializers with the same type, shape and bytes become one, so that a tied weight is one weight."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from onnxq.graph import constant_value

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
