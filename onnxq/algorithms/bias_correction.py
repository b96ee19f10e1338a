"""Biases that make up for the mean error of the weights: ``b += (W - W_q) E[x]`` (Nagel et al. 2019).

Rounded weights shift the mean of every output channel, by the same in every sample. The closed form needs
nothing but the mean of each input channel, which calibration has; what zeros at the border of an image change
of it is neglected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.biases import Bias, bias_of, with_biases
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers import Layer, layers, matrices, weights_of
from onnxq.algorithms.workbench import Workbench
from onnxq.graph import ints_attribute
from onnxq.numerics import dequantize, quantize

Doubles = NDArray[np.float64]


def correct_biases(draft: Draft, bench: Workbench) -> Draft | None:
    """Give every layer of ``draft`` that has a place for it the bias that its weights' errors ask for."""
    exact = {node.name: node for node in draft.exact.graph}
    nodes = {node.name: node for node in draft.model.graph}
    biases: list[Bias] = []
    for layer in layers(draft.model, draft.plan):
        bias, mean = bias_of(nodes[layer.name]), _mean_row(nodes[layer.name], layer, draft.means)
        if bias is not None and mean is not None:
            shift = _weight_error(exact[layer.name], nodes[layer.name], layer, draft) @ mean[:, :, None]
            biases.append(bias.plus(shift.reshape(-1)))
    return replace(draft, model=with_biases(draft.model, biases)) if biases else None


def _mean_row(node: ir.Node, layer: Layer, means: Mapping[str, Doubles]) -> Doubles | None:
    """The mean row x ``[G, K]``: that of its channel for every tap; None if it is not known."""
    groups, _, inputs = layer.shape
    known = means.get(layer.data.tensor)
    if known is None or (groups * inputs) % known.size:
        return None
    return np.repeat(known * _share(node), groups * inputs // known.size).reshape(groups, inputs)


def _share(node: ir.Node) -> float:
    """Of the outputs, those that a tap adds to: a transposed convolution with strides meets zeros between."""
    strides = ints_attribute(node, "strides", ()) if node.op_type == "ConvTranspose" else ()
    return 1 / math.prod(strides)


def _weight_error(exact: ir.Node, node: ir.Node, layer: Layer, draft: Draft) -> Doubles:
    """``W - W_q``, ``[G, O, K]``."""
    before, after = weights_of(exact), weights_of(node)
    assert before is not None
    assert after is not None
    params, spec = draft.plan.params[layer.weight.group], layer.weight.spec
    stored = dequantize(quantize(after, params, spec), params, spec)
    return matrices(exact, before).astype(np.float64) - matrices(node, stored)
