"""Shapes noted in the file that contradict the model's inputs are forgotten.

Whoever makes the batch size of an exported model dynamic often changes the inputs alone and leaves
``[1, ...]`` noted on every tensor inside. Runtimes ignore such notes; folding constants would believe
them and make the batch size 1 for good.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import all_nodes
from onnxq.passes._light import graphs, inferred_types, is_named, light_proto


class ForgetStaleShapesPass(ir.passes.InPlacePass):
    """One contradiction, and no note about a shape inside the model is believed. Types are."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Compare the noted shapes with those that follow from the inputs."""
        outputs = [o for node in all_nodes(model) for o in node.outputs if not o.is_graph_output()]
        noted = {o.name: o for o in outputs if o.shape is not None}
        follows = _from_inputs_alone(model) if noted else {}
        stale = any(_contradict(noted[n].shape, shape) for n, shape in follows.items() if n in noted)
        for value in noted.values() if stale else ():
            value.shape = None
        return ir.passes.PassResult(model, modified=stale)


def _from_inputs_alone(model: ir.Model) -> dict[str, ir.Shape | None]:
    proto = light_proto(model)
    for graph in graphs(proto.graph):
        del graph.value_info[:]
    return {n: ir.serde.deserialize_type_proto_for_shape(t) for n, t in inferred_types(proto).items()}


def _contradict(noted: ir.Shape | None, follows: ir.Shape | None) -> bool:
    """Whether a noted size differs from the one that follows, or is fixed where that one is not."""
    if noted is None or follows is None:
        return False
    if len(noted) != len(follows):
        return True
    pairs = zip(noted, follows, strict=True)
    return any(isinstance(n, int) and n != f and (isinstance(f, int) or is_named(f)) for n, f in pairs)
