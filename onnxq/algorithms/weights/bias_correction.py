"""Bias correction: in closed form, and measured layer by layer in the quantized model.

Biases that make up for the mean error of the weights: ``b += (W - W_q) E[x]`` (Nagel et al. 2019).

Rounded weights shift the mean of every output channel, by the same in every sample. The closed form needs
nothing but the mean of each input channel, which calibration has; what zeros at the border of an image change
of it is neglected.

Biases that make up for all that shifts the mean of a layer's output, measured in the quantized model.

``b += E[y] - E[y_q]``, one layer after the other in the order of the graph: so the shifts that rounded
activations and the layers before have left are cancelled too (Nagel et al. 2019, as "empirical").
A shift is measured on few samples, so it is believed as far as it is larger than chance would make it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.data.samples import Sample
from onnxq.algorithms.context import Arrays, CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.biases import Bias, bias_of, with_biases
from onnxq.algorithms.layers.matrices import MatrixLayer, channel_axis, layers, matrices, weights_of
from onnxq.algorithms.layers.stepwise import Array, run_stepwise
from onnxq.algorithms.layers.subgraphs import is_partitionable
from onnxq.core.numerics import dequantize, quantize
from onnxq.graph.nodes import ints_attribute, name_of

Doubles = NDArray[np.float64]


def correct_biases(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Give every layer of ``draft`` that has a place for it the bias that its weights' errors ask for."""
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


def _weight_error(exact: ir.Node, node: ir.Node, layer: MatrixLayer, draft: Draft) -> Doubles:
    """``W - W_q``, ``[G, O, K]``."""
    before, after = weights_of(exact), weights_of(node)
    assert before is not None
    assert after is not None
    params, spec = draft.plan.params[layer.weight.group], layer.weight.spec
    stored = dequantize(quantize(after, params, spec), params, spec)
    return matrices(exact, before).astype(np.float64) - matrices(node, stored)


HELD_BYTES = 2**28
"""What the largest output of a layer may take for all samples together."""


FEWEST = 8
"""Batches, whatever they take."""


def correct_biases_in_order(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Give every layer that has a place for it the bias with which its output has the float model's mean."""
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
        shift = believed(np.stack(shifts))
        corrected.append(place.bias.plus(shift))
        spread = shift.astype(np.float32).reshape(-1, *[1] * (-1 - place.axis))
        return [np.add(array, spread) for array in arrays]

    run_stepwise(quantized, list(found), batches, change, context.config.threads)
    return replace(draft, model=with_biases(draft.model, corrected))


@dataclass(frozen=True)
class _BiasSite:
    """A bias, and the axis from the end of the sum with it that counts the channels."""

    bias: Bias
    axis: int


def _places(draft: Draft) -> dict[str, _BiasSite]:
    """The tensors that hold a layer's products and bias."""
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
    """As many batches as there is memory for, and what the quantized model's means are to be on them."""

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
    others = tuple(i for i in range(array.ndim) if i != array.ndim + axis)
    return np.asarray(array.mean(axis=others, dtype=np.float64))


def believed(shifts: Doubles) -> Doubles:
    """The mean of ``shifts [samples, C]`` over the samples, each channel shrunk by how uncertain it is.

    By ``max(0, 1 - variance of the mean / mean^2)``, the positive-part James-Stein factor of one channel.
    """
    mean, count = shifts.mean(axis=0), len(shifts)
    uncertain = shifts.var(axis=0, ddof=1) / count if count > 1 else np.zeros_like(mean)
    share = 1 - np.divide(uncertain, np.square(mean), out=np.ones_like(mean), where=mean != 0)
    return np.asarray(mean * share.clip(0, 1))
