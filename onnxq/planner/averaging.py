"""Count over how many elements of a tensor the network after it averages; rounding errors cancel there.

Convolutions and pools combine an element of one feature with its neighbours. The sizes of successive
windows multiply. The walk ends where features are mixed otherwise (MatMul, normalization). It also ends
where an element is repeated, because its error is then the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxq.graph.nodes import is_broadcast, is_op
from onnxq.graph.operators import AVERAGED, BROADCASTING, data_values

MANY = 1024
"""The upper limit of the count."""


def averaged_elements(graph: ir.Graph) -> Mapping[ir.Value, int]:
    """Count over how many elements of each tensor the network averages, at most `MANY`.

    A tensor that is not listed has a count of one. Only the main graph is inspected. An unknown window
    size counts as `MANY`.
    """
    found: dict[ir.Value, int] = {}
    for node in reversed(list(graph)):
        for value, elements in _averaged(node, found):
            found[value] = min(max(elements, found.get(value, 1)), MANY)
    return found


def _averaged(node: ir.Node, found: Mapping[ir.Value, int]) -> Iterator[tuple[ir.Value, int]]:
    """Yield each data input of ``node`` and how many of its elements ``node`` and all after it average."""
    if node.op_type not in AVERAGED or not is_op(node, node.op_type):
        return
    window = AVERAGED[node.op_type](node)
    after = max(found.get(output, 1) for output in node.outputs)
    for value in data_values(node):
        if not value.is_initializer() and not _is_repeated(value, node):
            yield value, (MANY if window is None else window) * after


def _is_repeated(value: ir.Value, node: ir.Node) -> bool:
    return node.op_type in BROADCASTING and is_broadcast(value, node.outputs[0])
