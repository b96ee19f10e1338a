"""Angles: what goes into Sin and Cos, in rotary embeddings, embeddings of time steps, Fourier features.

The angle of a position is the position times a frequency, hundreds of radians, but Sin and Cos tell
hundredths of a radian apart. In 8 bits, one step would be a large part of a turn. So the nodes that compute
angles from positions are kept in float, products of matrices among them. Where a layer of the network
computes what goes into Sin or Cos, its values are features, with a range that training has kept small: only
the nodes after that layer are kept in float, up to Sin or Cos.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxq.graph.nodes import is_op
from onnxq.graph.operators import MOVING
from onnxq.graph.walks import producer_of, readers_of
from onnxq.planner.float_regions.feature_flow import LAYERS, PERIODIC, computed_by_layers

_KEEPING = (*("Add", "Sub", "Mul", "Div", "Neg", "Mod", "Concat", "Where", "Cast"), *sorted(MOVING))
"""Operators that compute angles from features."""

_REASON = "it computes angles for Sin or Cos, and in a range of many turns no angle is exact enough"


def angle_nodes(graph: ir.Graph) -> dict[ir.Node, str]:
    """Find the nodes that compute angles, and the Sin and Cos that read them."""
    features, angles = computed_by_layers(graph), set[ir.Node]()
    for node in reversed(list(graph)):
        into = [reader in angles or is_op(reader, *PERIODIC) for reader in readers_of(node)]
        if any(into) and (_is_position(node, features) or _computes_only_angles(node, features, into)):
            angles.add(node)
    angles |= {node for node in graph if is_op(node, *PERIODIC) and _reads_angle(node, angles)}
    return dict.fromkeys(angles, _REASON)


def _is_position(node: ir.Node, features: Collection[ir.Value | None]) -> bool:
    """Whether the node computes with positions or frequencies before any layer."""
    return not is_op(node, *LAYERS) and not any(value in features for value in node.inputs)


def _computes_only_angles(node: ir.Node, features: Collection[ir.Value | None], into: Sequence[bool]) -> bool:
    """Whether all of a node's outputs lead to angles, and it is no layer, or a layer that reads positions."""
    if not all(into) or any(value.is_graph_output() for value in node.outputs):
        return False
    return is_op(node, *_KEEPING) or not any(value in features for value in node.inputs)


def _reads_angle(node: ir.Node, angles: Collection[ir.Node]) -> bool:
    producer = producer_of(node.inputs[0])
    return producer is None or producer in angles
