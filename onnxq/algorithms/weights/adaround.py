"""AdaRound over the layers of a model, and the optimization problem of each layer.

The layers are processed in graph order. The weights of each layer are rounded so that its output is close to
the output of the float layer. The optimizer for one layer is in `soft_rounding.py`.
Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.

The problem of a layer consists of its input rows in the quantized model and its outputs in the float model,
at the same positions of the same samples. The float model does not change, so one pass over the samples
collects the float outputs of many layers. The quantized model runs again for each layer, up to the integers
that the layer reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from calibrators.collect import processors
from onnxq.algorithms.budget import LONG
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.biases import bias_and_activation, bias_of
from onnxq.algorithms.layers.im2col import finite, im2col_rows
from onnxq.algorithms.layers.matrices import (
    MatrixLayer,
    in_parts,
    matrices,
    weights,
    weights_of,
    with_own_weights,
)
from onnxq.algorithms.watching import Arrays
from onnxq.algorithms.weights.soft_rounding import LayerProblem, check_torch, learn
from onnxq.core.errors import ConfigError
from onnxq.core.numerics import dequantize, quantize, spread
from onnxq.graph.nodes import name_of
from onnxq.graph.qdq.read_qdq import dequantizer

Floats = NDArray[np.float32]


AIM_BYTES = 2**28
"""The memory limit for the float outputs that one pass over the samples collects.

The outputs of a single layer may take more.
"""


STRETCHES = 25
"""The number of contiguous stretches that the rows of a layer are split into."""


CHECK_EVERY = 5
"""Every fifth stretch is held out. It decides whether the learned rounding is kept."""


OVERHEAD = 2**14
"""The fixed cost of an iteration, expressed as a number of weights."""


def learn_rounding(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Learn the rounding of the weights and the bias of every layer, starting from those of ``draft``.

    The time limit of the options is shared among the layers in proportion to their size. The same samples,
    seed and number of threads give the same bytes, unless the time limit ends the optimization early: then
    the result also depends on the machine.

    Returns:
        The draft with the learned rounding; None if no layer was improved.

    Raises:
        ConfigError: PyTorch is not installed, or weights are floating-point numbers.
    """
    check_torch()
    found = with_own_weights(draft.reference, draft.plan)
    if any(layer.weight.spec.is_floating for layer in found):
        raise ConfigError("adaround (correct) learns to round to integers, not to FP8: leave it out")
    clock = _Clock(time.monotonic() + _seconds(context), sum(map(_cost, found)))
    changed = draft
    for part in in_parts(found, aim_bytes, AIM_BYTES):
        if clock.left <= 0:
            break
        for layer, aim in zip(part, float_outputs(draft.reference, part, context), strict=True):
            if clock.left > 0:
                context.progress("AdaRound", found.index(layer), len(found))
                changed = _with_learned(changed, layer, aim, clock.share(_cost(layer)), context)
    return changed if changed is not draft else None


def _with_learned(
    draft: Draft, layer: MatrixLayer, aim: Floats, seconds: float, context: CorrectionContext
) -> Draft:
    """Return ``draft`` with the learned rounding of one layer, if it reduces the error on held-out rows."""
    problem = layer_problem(draft, layer, aim, context)
    if problem.rows.shape[1] != problem.wanted.shape[1]:  # values select the rows: they do not correspond
        return draft
    fit, check = _halves(problem)
    if check.rows.shape[1] == 0:
        return draft
    learned = learn(fit, seconds, context.config.seed, context.config.threads or processors())
    if not replace(check, levels=learned.levels, bias=learned.bias).error() < check.error():
        return draft
    node = draft.model.graph.node(layer.name)
    values, bias = weights_of(node), bias_of(node)
    assert values is not None
    arrays = {layer.weight.tensor: weights(node, learned.levels * learned.scale, values.shape)}
    if bias is not None:
        arrays[bias.tensor] = learned.bias.reshape(bias.values.shape)
    return draft.with_constants(arrays)


def _seconds(context: CorrectionContext) -> float:
    limit = context.config.time_limit
    return min(context.budget.left, LONG if limit is None else limit)


@dataclass
class _Clock:
    """Divide the remaining time among the remaining layers, in proportion to their cost."""

    deadline: float
    to_do: float

    @property
    def left(self) -> float:
        """The remaining seconds."""
        return self.deadline - time.monotonic()

    def share(self, cost: float) -> float:
        """Return the seconds for a layer of this cost, and count the layer as done."""
        seconds = self.left * cost / self.to_do
        self.to_do -= cost
        return seconds


def _cost(layer: MatrixLayer) -> float:
    return math.prod(layer.shape) + OVERHEAD


def _halves(whole: LayerProblem) -> tuple[LayerProblem, LayerProblem]:
    """Split the rows of a problem into rows to fit on and held-out rows.

    Whole stretches are held out, because neighbouring rows are correlated.
    """
    count = whole.rows.shape[1]
    stretch = np.arange(count) * min(STRETCHES, count) // max(count, 1)
    held = stretch % CHECK_EVERY == CHECK_EVERY - 1
    fit, check = (
        replace(whole, rows=whole.rows[:, part], wanted=whole.wanted[:, part]) for part in (~held, held)
    )
    return fit, check


ROWS = 2**13
"""The largest number of rows of a layer."""


ROW_BYTES = 2**26
"""The memory limit for the rows of a layer and its outputs for these rows."""


def float_outputs(model: ir.Model, chosen: Sequence[MatrixLayer], context: CorrectionContext) -> list[Floats]:
    """Compute the outputs of some layers of the float model, after their Relu or Clip.

    Args:
        model: the float model.
        chosen: the layers.
        context: the samples to fit on and the options.

    Returns:
        The outputs of each layer, ``[G, n, O]``.
    """
    nodes = [model.graph.node(layer.name) for layer in chosen]
    transposed = [matrices(node, _weights(node)).transpose(0, 2, 1) for node in nodes]
    ends = [bias_and_activation(node, layer) for node, layer in zip(nodes, chosen, strict=True)]

    def look(number: int, arrays: Arrays) -> list[Floats]:
        return [
            ends[i].of(_picked(nodes[i], layer, arrays[layer.data.tensor], number, context) @ transposed[i])
            for i, layer in enumerate(chosen)
        ]

    found = context.watch(model, [layer.data.tensor for layer in chosen], look)
    return [np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True)]


def aim_bytes(layer: MatrixLayer) -> int:
    """Return the largest number of bytes that the float outputs of a layer take."""
    groups, outputs, _ = layer.shape
    return 4 * groups * outputs * _most_rows(layer)


def _most_rows(layer: MatrixLayer) -> int:
    groups, outputs, inputs = layer.shape
    return min(ROWS, ROW_BYTES // (4 * groups * (inputs + outputs)))


def layer_problem(draft: Draft, layer: MatrixLayer, aim: Floats, context: CorrectionContext) -> LayerProblem:
    """Build the rounding problem of one layer, with the inputs that it has in the quantized ``draft``.

    Args:
        draft: the current state of the quantized model.
        layer: the layer to round.
        aim: the outputs of the float layer, ``[G, n, O]``; see `float_outputs`.
        context: the samples to fit on and the options.
    """
    node, current = draft.reference.graph.node(layer.name), draft.model.graph.node(layer.name)
    params, spec = draft.plan.params[layer.weight.group], draft.plan.groups[layer.weight.group].spec
    exact, rounded = _weights(node), _weights(current)

    def everywhere(values: NDArray[np.generic]) -> Floats:
        return matrices(node, np.broadcast_to(spread(values, spec, exact.shape), exact.shape))

    scale, middle = everywhere(params.scale), everywhere(params.zero_point)
    end = bias_and_activation(current, layer)
    return LayerProblem(
        exact=matrices(node, exact) / scale,
        levels=matrices(node, quantize(rounded, params, spec)) - middle,
        scale=np.ascontiguousarray(scale),
        lowest=spec.limits[0] - middle,
        highest=spec.limits[1] - middle,
        rows=_rows(draft, layer, context),
        wanted=aim,
        bias=end.bias,
        limits=end.limits,
        biased=bias_of(current) is not None,
    )


def _weights(node: ir.Node) -> NDArray[np.generic]:
    values = weights_of(node)
    assert values is not None
    return values


def _rows(draft: Draft, layer: MatrixLayer, context: CorrectionContext) -> Floats:
    """Compute the input rows of the layer in the quantized model, ``[G, n, K]``."""
    node = draft.reference.graph.node(layer.name)
    group = draft.plan.groups[layer.data.group]
    integers, model = _integers(draft.quantized(), layer)

    def look(number: int, arrays: Arrays) -> Floats:
        real = dequantize(arrays[integers], draft.plan.params[group.name], group.spec)
        return _picked(node, layer, real, number, context)

    return np.concatenate(list(context.watch(model, [integers], look)), axis=1)


def _integers(quantized: ir.Model, layer: MatrixLayer) -> tuple[str, ir.Model]:
    """Return the name of the integer input of the layer, and ``quantized`` reduced to the nodes before it."""
    value = quantized.graph.node(layer.name).inputs[layer.data.input_index]
    reader = dequantizer(value)
    integers = None if reader is None else reader.inputs[0]
    assert integers is not None
    quantized.graph.outputs.clear()
    quantized.graph.outputs.append(integers)
    RemoveUnusedNodesPass()(quantized)
    return name_of(integers), quantized


def _picked(
    node: ir.Node, layer: MatrixLayer, data: NDArray[np.generic], number: int, context: CorrectionContext
) -> Floats:
    """Select rows of a batch, ``[G, n, K]``.

    The selection is the same for ``data`` of the float model and of the quantized model.
    """
    samples = sum(batch.count for batch in context.fit)
    limit = max(1, _most_rows(layer) // max(samples, 1))
    rows = im2col_rows(node, data, limit, np.random.default_rng((context.config.seed, number)))
    return np.ascontiguousarray(finite(rows).transpose(1, 0, 2))
