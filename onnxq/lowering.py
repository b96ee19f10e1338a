"""Planned operators whose integer kernel is slow, written as others that compute the same.

    AveragePool(x; kernel)  ->  Conv(x, w; group = channels),  w = 1 / prod(kernel)

Only where padding is counted as values, as a convolution counts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.graph import add_initializer, int_attribute, ints_attribute
from onnxq.plan import QuantPlan
from onnxq.targets.target import Target

_KEPT = ("kernel_shape", "pads", "strides", "dilations", "auto_pad")


def lower(model: ir.Model, plan: QuantPlan, target: Target) -> bool:
    """Rewrite, in place, the planned operators that ``target`` is slow at. The plan is then out of date.

    Names of nodes and tensors stay.

    Returns:
        Whether there was anything to rewrite.
    """
    slow = [node for node in model.graph if node.name in plan.nodes and node.op_type in target.slow]
    changed = [_REWRITES[node.op_type](model, node) for node in slow]
    return any(changed)


def _average_pool(model: ir.Model, node: ir.Node) -> bool:
    source = node.inputs[0]
    channels = source.shape[1] if source is not None and source.shape is not None else None
    if not isinstance(channels, int) or not _counts_padding(node) or int_attribute(node, "ceil_mode", 0):
        return False
    kernel = ints_attribute(node, "kernel_shape", ())
    weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel), np.float32)
    node.op_type, node.version = "Conv", None
    for name in set(node.attributes) - set(_KEPT):
        del node.attributes[name]
    node.attributes["group"] = ir.AttrInt64("group", channels)
    node.resize_inputs(2)
    node.replace_input_with(1, add_initializer(model, f"{node.name}_weight", weight))
    return True


def _counts_padding(node: ir.Node) -> bool:
    """Whether there is no padding, or it counts."""
    if int_attribute(node, "count_include_pad", 0):
        return True
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic in ("NOTSET", "VALID") and not any(ints_attribute(node, "pads", ()))


_REWRITES: Mapping[str, Callable[[ir.Model, ir.Node], bool]] = {"AveragePool": _average_pool}
