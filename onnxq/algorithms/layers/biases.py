"""The bias of a layer, and the Relu or Clip after it.

The bias is an input of the layer's node or, for MatMul, the constant of the Add that follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.draft import with_constants
from onnxq.algorithms.layers.matrices import MatrixLayer
from onnxq.graph.nodes import constant_value, input_at, is_op, name_of, sole_output
from onnxq.graph.operators import WEIGHTED, clip_range, output_channels, weight_shape
from onnxq.graph.walks import only_reader, only_use


@dataclass(frozen=True)
class Bias:
    """The bias of a layer, and its consumer.

    Attributes:
        holder: name of the node that reads the bias.
        index: position of the bias among the inputs of that node.
        tensor: name of the initializer.
        values: the values, in the shape of the initializer.
    """

    holder: str
    index: int
    tensor: str
    values: NDArray[np.float64]

    def plus(self, shift: NDArray[np.float64]) -> Bias:
        """Return a copy with ``shift``, ``[C]``, added to its C values."""
        return replace(self, values=self.values + shift.reshape(self.values.shape))


def bias_of(node: ir.Node) -> Bias | None:
    """Return the constant bias of a layer, one value per output channel; None if other nodes read it too."""
    operator = WEIGHTED[node.op_type]
    if operator.bias is not None:
        beta = node.attributes.get_float("beta", 1.0)
        return _bias(node, operator.bias, node) if beta == 1 else None
    if (use := only_use(sole_output(node))) is None:
        return None
    reader, index = use
    return _bias(reader, 1 - index, node) if is_op(reader, "Add") else None


def _bias(holder: ir.Node, index: int, node: ir.Node) -> Bias | None:
    value = input_at(holder, index)
    known = constant_value(value)
    if value is None or known is None or only_use(value) is None:
        return None
    if known.size != output_channels(node, weight_shape(node)) or known.size not in known.shape[-1:]:
        return None
    return Bias(name_of(holder), index, name_of(value), known.astype(np.float64))


def with_biases(model: ir.Model, biases: Iterable[Bias]) -> ir.Model:
    """Return a copy of ``model`` with the values of ``biases``."""
    return with_constants(model, {bias.tensor: bias.values for bias in biases})


Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BiasAndActivation:
    """The bias and the activation that follow the product of a layer.

    Attributes:
        bias: the bias, ``[G, 1, O]``. It is zero where the bias is not constant; it is then the same in the
            float and in the quantized model.
        limits: lower and upper limit of the Relu or Clip that is the only consumer of the sum; infinite if
            there is none.
    """

    bias: Floats
    limits: tuple[float, float] = (-math.inf, math.inf)

    def of(self, products: Floats) -> Floats:
        """Return ``products``, ``[G, n, O]``, with the bias added and the activation applied."""
        return (products + self.bias).clip(*self.limits)


def bias_and_activation(node: ir.Node, layer: MatrixLayer) -> BiasAndActivation:
    """Return the bias and the activation that follow ``layer``, computed by ``node``."""
    groups, outputs, _ = layer.shape
    bias, slot = bias_of(node), WEIGHTED[node.op_type].bias
    if bias is None:
        zeros = np.zeros((groups, 1, outputs), np.float32)
        unknown = slot is not None and input_at(node, slot) is not None
        return BiasAndActivation(zeros) if unknown else BiasAndActivation(zeros, _limits(node))
    adds = node if bias.holder == node.name else only_reader(sole_output(node))
    values = bias.values.reshape(groups, 1, outputs).astype(np.float32)
    return BiasAndActivation(values, _limits(adds))


def _limits(node: ir.Node | None) -> tuple[float, float]:
    reader = None if node is None else only_reader(sole_output(node))
    limits = None if reader is None else clip_range(reader)
    return limits or (-math.inf, math.inf)
