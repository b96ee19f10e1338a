"""Factors of channels -> a model whose constants have taken them in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels import Channels, Fold
from onnxq.graph import add_initializer, constant_value
from onnxq.names import unused_name

Factors = NDArray[np.float64]
"""One for each label of `Channels`; that of a fixed channel is 1."""


def folded(model: ir.Model, channels: Channels, factors: Factors) -> ir.Model:
    """A copy of ``model`` that computes the same, with every channel c multiplied by ``factors[c]``.

    A constant that others read too is copied for the one that changes it.
    """
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph}
    for fold in channels.folds:
        factor = factors[fold.up] / factors[fold.down]
        if (factor != 1).any():
            _take_in(copy, nodes[fold.node], fold, factor)
    return copy


def _take_in(model: ir.Model, node: ir.Node, fold: Fold, factor: Factors) -> None:
    array = constant_value(node.inputs[fold.index])
    assert array is not None
    replace_constant(model, node, fold.index, array.astype(np.float64) * factor, "scaled")


def replace_constant(
    model: ir.Model, node: ir.Node, index: int, values: NDArray[np.float64], done: str
) -> None:
    """Give a node another constant of the same type; where others read the old one too, beside it."""
    old = node.inputs[index]
    array = constant_value(old)
    assert old is not None
    assert array is not None
    changed = np.asarray(_fitting(values, array.ndim), array.dtype)
    if len(old.uses()) > 1 or old.is_graph_output():
        name = unused_name(f"{old.name}_{done}", model)
        node.replace_input_with(index, add_initializer(model, name, changed))
    else:
        old.const_value, old.shape = ir.tensor(changed, name=old.name), ir.Shape(changed.shape)


def _fitting(array: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """Without leading dimensions of size 1 that the constant did not have before."""
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array
