"""Operators that ONNX Runtime has in the standard domain, and ONNX has not, or only in a later opset.

ONNX Runtime's optimizer and its builder of language models write SimplifiedLayerNormalization there, older
exporters LayerNormalization below opset 17, and converters from CoreML ImageScaler and Affine. ONNX's checker
and version converter refuse such nodes, but leave other domains alone. So for these tools the nodes are set
apart in a domain of their own, and the runtime decides whether they are valid.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxq.graph.nodes import STANDARD_DOMAIN, all_nodes

APART = "onnxq.runtime"
"""The domain in which nodes are set apart."""


def is_foreign(node: ir.Node, model: ir.Model) -> bool:
    """Whether the node is no operator of ONNX in the model's opset."""
    opset = model.graph.opset_imports.get(STANDARD_DOMAIN)
    if node.domain != STANDARD_DOMAIN or opset is None:
        return node.domain != STANDARD_DOMAIN
    return not onnx.defs.has(node.op_type, opset) and node.op_identifier() not in model.functions


def runtime_nodes(model: ir.Model) -> list[ir.Node]:
    """List the nodes that are in the standard domain, but no operators of ONNX in the model's opset."""
    return [node for node in all_nodes(model) if node.domain == STANDARD_DOMAIN and is_foreign(node, model)]


def set_apart(model: ir.Model) -> ir.Model:
    """Make a copy in which the `runtime_nodes` are in the domain `APART`; the model itself if it has none."""
    if not runtime_nodes(model):
        return model
    copy = model.clone()
    for node in runtime_nodes(copy):
        node.domain = APART
    copy.graph.opset_imports[APART] = 1
    return copy


def put_back(graph: ir.Graph) -> None:
    """Return the nodes that were set apart to the standard domain."""
    graph.opset_imports.pop(APART, None)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.domain == APART:
            node.domain = STANDARD_DOMAIN
