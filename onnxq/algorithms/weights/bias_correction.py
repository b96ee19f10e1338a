"""Bias correction: in closed form, and measured layer by layer in the quantized model.

Both methods are from Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
2019.

`correct_biases` uses the closed form ``b += (W - W_q) E[x]``. The rounding errors of the weights shift the
mean of every output channel by the same amount in every sample. The closed form needs only the mean of each
input channel, which calibration provides. It neglects the effect of zero padding on this mean.

`correct_biases_in_order` measures the shift in the quantized model: ``b += E[y] - E[y_q]`` (the empirical
bias correction of the paper). It processes the layers in graph order, so it also cancels the shifts caused by
quantized activations and by the layers before. A shift is measured on few samples, so it is shrunk according
to its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.data.samples import Sample
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.biases import Bias, bias_of, with_biases
from onnxq.algorithms.layers.matrices import MatrixLayer, channel_axis, layers, matrices, weights_of
from onnxq.algorithms.layers.stepwise import Array, run_stepwise
from onnxq.algorithms.layers.subgraphs import is_partitionable
from onnxq.algorithms.watching import Arrays
from onnxq.core.numerics import dequantize, quantize
from onnxq.graph.nodes import ints_attribute, name_of

Doubles = NDArray[np.float64]


def correct_biases(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Correct the bias of every layer of ``draft`` that has one, in closed form.

    Returns:
        The corrected draft; None if there is no bias to correct.
    """
    exact = {node.name: node for node in draft.reference.graph}
    nodes = {node.name: node for node in draft.model.graph}
    biases: list[Bias] = []
    for layer in layers(draft.model, draft.plan):
        bias, mean = bias_of(nodes[layer.name]), _mean_row(nodes[layer.name], layer, draft.channel_means)
        if bias is not None and mean is not None:
            shift = _weight_error(exact[layer.name], nodes[layer.name], layer, draft) @ mean[:, :, None]
            biases.append(bias.plus(shift.reshape(-1)))
    return replace(draft, model=with_biases(draft.model, biases)) if biases else None


def _mean_row(node: ir.Node, layer: MatrixLayer, means: Mapping[str, Doubles]) -> Doubles | None:
    """Return the mean input row ``[G, K]``; None if it is not known.

    Every kernel tap has the mean of its input channel.
    """
    groups, _, inputs = layer.shape
    known = means.get(layer.data.tensor)
    if known is None or (groups * inputs) % known.size:
        return None
    return np.repeat(known * _share(node), groups * inputs // known.size).reshape(groups, inputs)


def _share(node: ir.Node) -> float:
    """Return the share of the outputs that a kernel tap adds to.

    It is less than 1 for a transposed convolution with strides, which inserts zeros between its inputs.
    """
    strides = ints_attribute(node, "strides", ()) if node.op_type == "ConvTranspose" else ()
    return 1 / math.prod(strides)


def _weight_error(exact: ir.Node, node: ir.Node, layer: MatrixLayer, draft: Draft) -> Doubles:
    """Compute ``W - W_q``, ``[G, O, K]``."""
    before, after = weights_of(exact), weights_of(node)
    assert before is not None
    assert after is not None
    params, spec = draft.plan.params[layer.weight.group], layer.weight.spec
    stored = dequantize(quantize(after, params, spec), params, spec)
    return matrices(exact, before).astype(np.float64) - matrices(node, stored)


HELD_BYTES = 2**28
"""The memory limit for the largest layer output of all samples together."""


FEWEST = 8
"""The smallest number of batches, even if they exceed the memory limit."""


def correct_biases_in_order(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Correct the bias of every layer that has one, so that its mean output is that of the float model.

    Returns:
        The corrected draft; None if there is no bias to correct, if the model cannot be partitioned, or if it
        accepts no batch.
    """
    quantized, found = draft.quantized(), _places(draft)
    if not found or not is_partitionable(quantized):
        return None
    corrected: list[Bias] = []
    batches, wanted = _float_means(draft, found, context)
    if not batches:
        return None

    def change(stop: str, arrays: list[Array]) -> list[Array]:
        context.progress("correcting biases", len(corrected), len(found))
        place = found[stop]
        shifts = [w - _means(array, place.axis) for w, array in zip(wanted[stop], arrays, strict=True)]
        shifts = [each for each in shifts if np.isfinite(each).all()]  # a batch may have no rows at all
        shift = believed(np.stack(shifts)) if shifts else np.zeros_like(wanted[stop][0])
        corrected.append(place.bias.plus(shift))
        spread = shift.astype(np.float32).reshape(-1, *[1] * (-1 - place.axis))
        return [np.add(array, spread) for array in arrays]

    run_stepwise(quantized, list(found), batches, change, context.config.threads)
    return replace(draft, model=with_biases(draft.model, corrected))


@dataclass(frozen=True)
class _BiasSite:
    """A bias, and the channel axis of the tensor that it is added to, counted from the end (negative)."""

    bias: Bias
    axis: int


def _places(draft: Draft) -> dict[str, _BiasSite]:
    """Map each tensor that is the sum of a layer's products and its bias to that bias."""
    nodes = {node.name: node for node in draft.model.graph}
    axes = {layer.name: channel_axis(nodes[layer.name]) for layer in layers(draft.model, draft.plan)}
    found = {name: bias_of(nodes[name]) for name in axes}
    return {
        name_of(nodes[bias.holder].outputs[0]): _BiasSite(bias, axes[name])
        for name, bias in found.items()
        if bias is not None
    }


def _float_means(
    draft: Draft, found: Mapping[str, _BiasSite], context: CorrectionContext
) -> tuple[list[Sample], dict[str, list[Doubles]]]:
    """Measure the channel means of the float model on as many batches as fit into memory.

    Returns:
        The batches, and for each tensor the means of each batch, ``[C]``.
    """

    def look(number: int, arrays: Arrays) -> tuple[int, int, dict[str, Doubles]]:
        largest = max(arrays[stop].nbytes for stop in found)
        return number, largest, {stop: _means(arrays[stop], place.axis) for stop, place in found.items()}

    runs = list(context.watch(draft.reference, list(found), look))
    if not runs:
        return [], {}
    count = min(max(HELD_BYTES // max(size for _, size, _ in runs), FEWEST), len(runs))
    chosen = [runs[i] for i in np.linspace(0, len(runs) - 1, count).round().astype(int)]
    batches = [context.fit[number] for number, _, _ in chosen]
    return batches, {stop: [means[stop] for _, _, means in chosen] for stop in found}


def _means(array: Array, axis: int) -> Doubles:
    """Return the mean of each channel; NaN if the array is empty."""
    if not array.size:
        return np.full(array.shape[axis], np.nan)
    others = tuple(i for i in range(array.ndim) if i != array.ndim + axis)
    return np.asarray(array.mean(axis=others, dtype=np.float64))


def believed(shifts: Doubles) -> Doubles:
    """Return the mean of ``shifts [batches, C]`` over the batches, each channel shrunk by its uncertainty.

    The factor is ``max(0, 1 - variance of the mean / mean^2)``, the positive-part James-Stein factor of one
    channel.
    """
    mean, count = shifts.mean(axis=0), len(shifts)
    uncertain = shifts.var(axis=0, ddof=1) / count if count > 1 else np.zeros_like(mean)
    share = 1 - np.divide(uncertain, np.square(mean), out=np.ones_like(mean), where=mean != 0)
    return np.asarray(mean * share.clip(0, 1))
