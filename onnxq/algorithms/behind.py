"""What becomes of the products of a layer: a bias is added, and a Relu or Clip behind it may cut them off."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.biases import bias_of
from onnxq.algorithms.layers import Layer
from onnxq.graph import input_at, sole_output
from onnxq.operators import WEIGHTED, clip_range

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Behind:
    """What is done to the products of a layer.

    Attributes:
        bias: ``[G, 1, O]``; zeros where it is not known, and then it is the same in both models.
        limits: of the Relu or Clip that alone reads the sum; infinite if there is none.
    """

    bias: Floats
    limits: tuple[float, float] = (-math.inf, math.inf)

    def of(self, products: Floats) -> Floats:
        """What the products, ``[G, n, O]``, become."""
        return (products + self.bias).clip(*self.limits)


def behind(node: ir.Node, layer: Layer) -> Behind:
    """What is behind ``layer``, which ``node`` computes."""
    groups, outputs, _ = layer.shape
    bias, slot = bias_of(node), WEIGHTED[node.op_type].bias
    if bias is None:
        zeros = np.zeros((groups, 1, outputs), np.float32)
        unknown = slot is not None and input_at(node, slot) is not None
        return Behind(zeros) if unknown else Behind(zeros, _limits(_reader(node)))
    adds = node if bias.holder == node.name else _reader(node)
    values = bias.values.reshape(groups, 1, outputs).astype(np.float32)
    return Behind(values, _limits(_reader(adds)))


def _limits(reader: ir.Node | None) -> tuple[float, float]:
    limits = None if reader is None else clip_range(reader)
    return limits or (-math.inf, math.inf)


def _reader(node: ir.Node | None) -> ir.Node | None:
    """The only node that reads what ``node`` makes, if there is just one."""
    value = None if node is None else sole_output(node)
    if value is None or value.is_graph_output():
        return None
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 else None
