"""Initializers with the same type, shape and bytes become one, so that a tied weight is one weight."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import onnx_ir as ir


class DeduplicateInitializersPass(ir.passes.InPlacePass):
    """The first of equal initializers serves the readers of all; one that is a graph output stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge the equal initializers of every graph; bytes are compared only where sizes agree."""
        modified = any([_merge(bucket) for graph in model.graphs() for bucket in _alike(graph)])
        return ir.passes.PassResult(model, modified=modified)


def _alike(graph: ir.Graph) -> list[list[ir.Value]]:
    buckets: dict[tuple[ir.DataType, tuple[int, ...]], list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and not value.is_graph_input():
            buckets[tensor.dtype, tuple(tensor.shape.numpy())].append(value)
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
    array = np.ascontiguousarray(value.const_value.numpy())  # type: ignore[union-attr]
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()
