"""What each layer has to learn: its rows as the quantized model makes them, and what the float layer gives.

Both are looked at in the same places. The float model does not change, so that one pass over the samples
serves many layers; the quantized one runs again for each, as far as the integers that the layer reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxq.algorithms.behind import behind
from onnxq.algorithms.biases import bias_of
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers import Layer, matrices, weights_of
from onnxq.algorithms.patches import finite, patches
from onnxq.algorithms.soft_rounding import Task
from onnxq.algorithms.workbench import Arrays, Workbench
from onnxq.numerics import dequantize, quantize, spread

Floats = NDArray[np.float32]

ROWS = 2**13
"""Rows of a layer, at most; and with what it makes of them they take no more bytes than:"""
ROW_BYTES = 2**26


def aims(model: ir.Model, chosen: Sequence[Layer], bench: Workbench) -> list[Floats]:
    """What some layers of the float ``model`` give, behind their Relu or Clip: ``[G, n, O]`` of each."""
    nodes = [model.graph.node(layer.name) for layer in chosen]
    transposed = [matrices(node, _weights(node)).transpose(0, 2, 1) for node in nodes]
    ends = [behind(node, layer) for node, layer in zip(nodes, chosen, strict=True)]

    def look(number: int, arrays: Arrays) -> list[Floats]:
        return [
            ends[i].of(_picked(nodes[i], layer, arrays[layer.data.tensor], number, bench) @ transposed[i])
            for i, layer in enumerate(chosen)
        ]

    found = bench.watch(model, [layer.data.tensor for layer in chosen], look)
    return [np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True)]


def aim_bytes(layer: Layer) -> int:
    """The memory that the aim of a layer takes at most."""
    groups, outputs, _ = layer.shape
    return 4 * groups * outputs * _most_rows(layer)


def _most_rows(layer: Layer) -> int:
    groups, outputs, inputs = layer.shape
    return min(ROWS, ROW_BYTES // (4 * groups * (inputs + outputs)))


def task(draft: Draft, layer: Layer, aim: Floats, bench: Workbench) -> Task:
    """What one layer has to learn, with inputs from the layers before it as they are in ``draft``."""
    node, current = draft.exact.graph.node(layer.name), draft.model.graph.node(layer.name)
    params, spec = draft.plan.params[layer.weight.group], draft.plan.groups[layer.weight.group].spec
    exact, rounded = _weights(node), _weights(current)

    def everywhere(values: NDArray[np.generic]) -> Floats:
        return matrices(node, np.broadcast_to(spread(values, spec, exact.shape), exact.shape))

    scale, middle = everywhere(params.scale), everywhere(params.zero_point)
    end = behind(current, layer)
    return Task(
        exact=matrices(node, exact) / scale,
        levels=matrices(node, quantize(rounded, params, spec)) - middle,
        scale=np.ascontiguousarray(scale),
        lowest=spec.limits[0] - middle,
        highest=spec.limits[1] - middle,
        rows=_rows(draft, layer, bench),
        wanted=aim,
        bias=end.bias,
        limits=end.limits,
        biased=bias_of(current) is not None,
    )


def _weights(node: ir.Node) -> NDArray[np.generic]:
    values = weights_of(node)
    assert values is not None
    return values


def _rows(draft: Draft, layer: Layer, bench: Workbench) -> Floats:
    """What the quantized layer multiplies with: ``[G, n, K]``."""
    node = draft.exact.graph.node(layer.name)
    group = draft.plan.groups[layer.data.group]
    integers, model = _integers(draft.quantized(), layer)

    def look(number: int, arrays: Arrays) -> Floats:
        real = dequantize(arrays[integers], draft.plan.params[group.name], group.spec)
        return _picked(node, layer, real, number, bench)

    return np.concatenate(list(bench.watch(model, [integers], look)), axis=1)


def _integers(quantized: ir.Model, layer: Layer) -> tuple[str, ir.Model]:
    """The integers that the layer dequantizes and reads; ``quantized``, cut off behind them."""
    value = quantized.graph.node(layer.name).inputs[layer.data.input_index]
    reader = None if value is None else value.producer()
    integers = None if reader is None else reader.inputs[0]
    assert integers is not None
    quantized.graph.outputs.clear()
    quantized.graph.outputs.append(integers)
    RemoveUnusedNodesPass()(quantized)
    return integers.name or "", quantized


def _picked(node: ir.Node, layer: Layer, data: NDArray[np.generic], number: int, bench: Workbench) -> Floats:
    """Rows of a batch, ``[G, n, K]``: of the same places whatever model ``data`` comes from."""
    samples = sum(batch.count for batch in bench.fit)
    limit = max(1, _most_rows(layer) // max(samples, 1))
    rows = patches(node, data, limit, np.random.default_rng((bench.seed, number)))
    return np.ascontiguousarray(finite(rows).transpose(1, 0, 2))
