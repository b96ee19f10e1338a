"""Fold through Clip: move factors after a Clip before it, and turn HardSigmoid, Max and Min into Clip."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import add_initializer, all_nodes, is_op, replace_value
from onnxq.graph.operators import Range, attribute_value, clip_range
from onnxq.graph.passes._affine import Affine, give_to_producer, is_private
from onnxq.graph.passes._piecewise import limited, scalar_affine
from onnxq.graph.passes._weighted import FLOATS


class ScaleBeforeClipPass(ir.passes.InPlacePass):
    """Fold a positive constant factor after a Clip or Relu into the layer before it.

        clip(conv(x), low, high) * k   ->   clip(conv'(x), k * low, k * high),   W' = k * W,  b' = k * b

    The output of the Clip takes over the name of the Mul's output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every factor of one element that is greater than zero."""
        folded = [_scale_before(model, node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(folded))


def _scale_before(model: ir.Model, node: ir.Node) -> bool:
    affine = scalar_affine(node)
    clip = None if affine is None else affine.source.producer()
    if affine is None or clip is None or affine.shift.item() != 0 or affine.scale.item() <= 0:
        return False
    source = clip.inputs[0] if is_op(clip, "Clip", "Relu") else None
    limits = clip_range(clip)
    if (
        source is None
        or limits is None
        or not is_private(affine.source, node)
        or not is_private(source, clip)
    ):
        return False
    if not give_to_producer(model, Affine(source, affine.scale, affine.shift)):
        return False
    source.name = f"{node.outputs[0].name}_before_clip"  # it is another tensor now
    _scale_limits(model, clip, affine.scale.item())
    _take_place(node, affine.source)
    return True


def _scale_limits(model: ir.Model, clip: ir.Node, factor: float) -> None:
    for index, limit in zip((1, 2), clip_range(clip) or (), strict=False):
        value = clip.inputs[index] if index < len(clip.inputs) else None
        if value is not None and value.dtype is not None and not math.isinf(limit):
            array = np.array(limit * factor, value.dtype.numpy())
            clip.replace_input_with(index, add_initializer(model, f"{clip.name}_limit", array))


def _take_place(node: ir.Node, clipped: ir.Value) -> None:
    replace_value(node.outputs[0], clipped)
    if node.graph is not None:
        node.graph.remove(node, safe=True)


class HardSigmoidToClipPass(ir.passes.InPlacePass):
    """Fold the line of a HardSigmoid into the weighted layer before it, which leaves a Clip.

        HardSigmoid(conv(x))   ->   Clip(conv'(x), 0, 1),   W' = alpha * W,  b' = alpha * b + beta

    Runtimes fuse a Clip with the layer, also in integers, but none has an integer kernel for HardSigmoid.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every HardSigmoid that is the only reader of a layer's output."""
        folded = [
            _fold_hard_sigmoid(model, node) for node in list(all_nodes(model)) if is_op(node, "HardSigmoid")
        ]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold_hard_sigmoid(model: ir.Model, node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.dtype is None or not is_private(source, node):
        return False
    slope, offset = (np.full((), attribute_value(node, name)) for name in ("alpha", "beta"))
    if not give_to_producer(model, Affine(source, slope, offset)):
        return False
    source.name = f"{node.outputs[0].name}_before_clip"  # it is another tensor now
    _write_limits(model, node, source, (0.0, 1.0))
    return True


class ClampToClipPass(ir.passes.InPlacePass):
    """Turn Max and Min with constants into Relu and Clip, and make one node of successive ones.

        Max(x, 0)                             ->  Relu(x)
        Min(Max(x, low), high)                ->  Clip(x, low, high)
        Min(Relu(x), 6), Clip(Relu(x), -1, 6) ->  Clip(x, 0, 6)

    Runtimes fuse a Relu or Clip with the layer before it, also in integers, but no Max or Min. Constants that
    differ between elements stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such node; those that are then not read are removed later."""
        changed = [_clamp(model, node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(changed))


def _clamp(model: ir.Model, node: ir.Node) -> bool:
    found = limited(node)
    if found is None or found[0].dtype not in FLOATS:
        return False
    source, limits = found
    inner = limited(source.producer()) if is_private(source, node) else None
    if inner is not None:
        source, (low, high) = inner[0], np.clip(inner[1], *limits)
        limits = float(low), float(high)
    elif is_op(node, "Relu", "Clip"):
        return False
    _write_limits(model, node, source, limits)
    return True


def _write_limits(model: ir.Model, node: ir.Node, source: ir.Value, limits: Range) -> None:
    """Turn the node into the Relu or Clip of ``source`` with these limits; without any, into an Identity.

    The type of ``source`` must be known.
    """
    assert source.dtype is not None
    low, high = limits
    shortened = {(-math.inf, math.inf): "Identity", (0.0, math.inf): "Relu"}
    node.op_type = shortened.get(limits, "Clip")
    node.attributes.clear()
    node.resize_inputs(1)
    node.replace_input_with(0, source)
    if node.op_type == "Clip":
        node.resize_inputs(2 if high == math.inf else 3)
        for index, limit, unlimited in ((1, low, -math.inf), (2, high, math.inf)):
            if limit != unlimited:
                array = np.array(limit, source.dtype.numpy())
                node.replace_input_with(index, add_initializer(model, f"{node.name}_limit", array))
