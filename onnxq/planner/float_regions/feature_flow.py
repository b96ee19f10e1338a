"""What comes of layers, and what leads to a layer or another goal.

What layers have computed are features, in contrast to positions, frequencies and masks, which they read.
Training keeps the range of features small. What is computed of indices and sizes has any range.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxq.graph.nodes import is_op
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.walks import holds_reals

PERIODIC = ("Sin", "Cos")
"""Operators of which it is the same how many turns their inputs hold."""

LAYERS = (*WEIGHTED, "LSTM", "GRU", "RNN", *PERIODIC)
"""Operators whose outputs are features, whatever they read."""


def computed_by_layers(graph: ir.Graph) -> frozenset[ir.Value | None]:
    """Find the tensors that a layer computes, and all float tensors that are computed from them."""
    features = set[ir.Value | None]()
    for node in graph:
        if is_op(node, *LAYERS) or not features.isdisjoint(node.inputs):
            features.update(value for value in node.outputs if holds_reals(value))
    return frozenset(features)


def nodes_before(
    graph: ir.Graph, goal: Callable[[ir.Node], bool], passes: Callable[[ir.Node], bool]
) -> frozenset[ir.Node]:
    """Find the nodes of a graph whose float outputs reach a goal.

    Args:
        graph: the graph; its nodes are in order.
        goal: whether a node is a goal.
        passes: whether a node between passes values on.
    """
    found = set[ir.Node]()
    for node in reversed(list(graph)):
        readers = [use.node for value in node.outputs if holds_reals(value) for use in value.uses()]
        if any(goal(reader) or (reader in found and passes(reader)) for reader in readers):
            found.add(node)
    return frozenset(found)
