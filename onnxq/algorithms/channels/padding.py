"""A Pad in front of a convolution, so that zeros around its input may be another number.

`centering` lowers what a convolution reads; the zeros that it pads with would have to be lowered too, which
no runtime does. A Pad of its own does it. It is one more pass over the tensor, unless the runtime joins it
with what stands before (TensorRT-RTX 1.7 builds as many layers with it as without), so it stands only where
it gains much.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.core.plan import Group
from onnxq.graph.nodes import add_initializer, is_op, name_of, unused_name, unused_node

WORTH = 0.02
"""What a Pad must gain, as a share of all the noise that there is."""

GAIN = 0.75
"""Of the noise of a tensor, once it has twice as many integers."""


def worth_a_pad(draft: Draft, groups: Collection[Group], context: CorrectionContext) -> tuple[str, ...]:
    """The convolutions that pad, whose input is not negative and makes much of the noise at the outputs."""
    one_sided = {group.name for group in groups if group.bounds[0] == 0}
    nodes = {name_of(node): node for node in draft.reference.graph}
    readers = {p.consumer: p.group for p in draft.plan.points if p.group in one_sided and p.input_index == 0}
    padding = {name: group for name, group in readers.items() if _pads(nodes[name])}
    if not padding:
        return ()
    all_noise = context.error(draft)
    ranked = sensitivities(draft, context, set(padding.values()))
    worth = {one.group.name for one in ranked if GAIN * one.quality.noise > WORTH * all_noise}
    return tuple(name for name, group in padding.items() if group in worth)


def _pads(node: ir.Node) -> bool:
    """Whether it is a convolution with pads that are written down."""
    return is_op(node, "Conv") and any(node.attributes.get_ints("pads", ()))


def pad_with(number: float, model: ir.Model, node: ir.Node) -> None:
    """Let a Pad with this number stand for the zeros that a convolution pads its input with."""
    value, pads = node.inputs[0], list(node.attributes.get_ints("pads", ()))
    assert value is not None
    half = len(pads) // 2
    every = [0, 0, *pads[:half], 0, 0, *pads[half:]]
    name = unused_name(f"{value.name}_padded", model)
    amounts = add_initializer(model, f"{name}_pads", np.array(every, np.int64))
    filling = add_initializer(model, f"{name}_number", np.array(number, np.float32))
    pad = ir.node("Pad", [value, amounts, filling], name=unused_node(f"{node.name}_pad", model))
    out = pad.outputs[0]
    out.name, out.type, out.shape = name, value.type, _grown(value, every)
    model.graph.insert_before(node, pad)
    node.replace_input_with(0, out)
    node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))


def _grown(value: ir.Value, pads: Sequence[int]) -> ir.Shape | None:
    """The shape of a tensor once it is padded."""
    if value.shape is None:
        return None
    added = np.reshape(pads, (2, -1)).sum(axis=0).tolist()
    return ir.Shape([_plus(size, more) for size, more in zip(value.shape, added, strict=True)])


def _plus(size: int | ir.SymbolicDim, more: int) -> int | ir.SymbolicDim | None:
    if isinstance(size, int):
        return size + more
    return None if more else size
