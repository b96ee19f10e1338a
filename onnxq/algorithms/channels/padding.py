"""A Pad before a convolution, which replaces its zero padding by padding with another value.

`center` shifts the input of a convolution. The padding would have to be shifted too, but a Conv can only pad
with zeros. So a separate Pad is inserted. It costs one more pass over the tensor, unless the runtime fuses it
with the node before (TensorRT-RTX 1.7 builds the same number of layers with and without it). Therefore it is
inserted only where it reduces the noise enough.
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
"""Smallest noise reduction for which a Pad is inserted, as a share of all noise at the outputs."""

GAIN = 0.75
"""Share of the noise of a tensor that is removed when it uses twice as many integers (half the step)."""


def worth_a_pad(draft: Draft, groups: Collection[Group], context: CorrectionContext) -> tuple[str, ...]:
    """Return the names of the convolutions before which a Pad is worthwhile.

    They have zero padding, and a non-negative input that causes much of the noise at the outputs.

    Args:
        draft: the calibrated draft.
        groups: the groups of activations to consider.
        context: the held-out samples to measure the noise on.
    """
    one_sided = {group.name for group in groups if group.bounds[0] == 0}
    nodes = {name_of(node): node for node in draft.reference.graph}
    readers = {p.consumer: p.group for p in draft.plan.points if p.group in one_sided and p.input_index == 0}
    padding = {name: group for name, group in readers.items() if _pads(nodes[name])}
    if not padding:
        return ()
    all_noise = context.error(draft)
    ranked = sensitivities(draft, context.without_metric(), set(padding.values()))
    worth = {one.group.name for one in ranked if GAIN * one.quality.noise > WORTH * all_noise}
    return tuple(name for name, group in padding.items() if group in worth)


def _pads(node: ir.Node) -> bool:
    """Whether the node is a Conv with explicit nonzero ``pads``."""
    return is_op(node, "Conv") and any(node.attributes.get_ints("pads", ()))


def pad_with(number: float, model: ir.Model, node: ir.Node) -> None:
    """Replace the zero padding of a convolution by a Pad with another value.

    Args:
        number: the value to pad with.
        model: the model; it is changed.
        node: the Conv, with explicit ``pads``.
    """
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
    """Return the shape of the padded tensor."""
    if value.shape is None:
        return None
    added = np.reshape(pads, (2, -1)).sum(axis=0).tolist()
    return ir.Shape([_plus(size, more) for size, more in zip(value.shape, added, strict=True)])


def _plus(size: int | ir.SymbolicDim, more: int) -> int | ir.SymbolicDim | None:
    if isinstance(size, int):
        return size + more
    return None if more else size
