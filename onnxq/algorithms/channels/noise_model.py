"""The predicted quantization noise as a function of the channel factors, and its minimum.

A tensor with step D, quantized after multiplication by the factors s, has the noise ``D^2 / 12 / s[c]^2`` in
channel c, in units of the unscaled tensor. D grows with the largest ``s[c] * |x[c]|``. So factors that
equalize the channels reduce the noise of the small ones. Weights are divided by the factors of their input
channels, and have one step per row, ``max_c |W[o, c]| / s[c] / 127``. Their noise is multiplied by the scaled
inputs, ``s[c] x[c]``. So factors that equalize the columns of the weights reduce it. Both kinds of noise are
predicted at the outputs of the layers, relative to the variance of these outputs, and added up.

Every term is a product of sums and maxima of powers of factors, so the logarithm of their sum is convex in
``log s`` (a geometric program; Boyd et al., A tutorial on geometric programming, 2007), and gradient descent
finds the global minimum. Cross-layer equalization (Nagel et al., Data-free quantization through weight
equalization and bias correction, 2019) and SmoothQuant (Xiao et al., 2022) instead use a fixed compromise
between the two kinds of noise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.channel_moments import SILENT, ChannelMoments, Reals
from onnxq.algorithms.channels.labels import FIXED, Channels, Labels
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.matrices import matrices_of, weights_of
from onnxq.core.plan import Group, QuantSpec
from onnxq.graph.nodes import name_of
from onnxq.graph.operators import WEIGHTED

_CostAndGradient = tuple[float, Reals]
"""A cost, and its gradient with respect to the logarithms of all factors."""


POWER = 32
"""The maximum of several values is replaced by their norm of this order, which is differentiable."""


STEPS = 150
"""Number of steps of gradient descent."""


FIRST_RATE, LAST_RATE = 0.2, 0.005
"""Learning rates of the first and the last step, for the logarithms of the factors."""


@dataclass(frozen=True)
class Activations:
    """The noise of tensors that share one scale. The channels of all these tensors are concatenated.

    Attributes:
        labels: labels of the channels, ``[C]``.
        high: the largest value of each channel, ``[C]``, at least 0.
        low: the negated smallest value of each channel, ``[C]``, at least 0.
        gain: gain of each channel's noise (power) to the outputs of layers, over the variance there, ``[C]``.
        levels: number of steps between the ends of the range.
        symmetric: whether the range is symmetric about 0.
    """

    labels: Labels
    high: Reals
    low: Reals
    gain: Reals
    levels: int
    symmetric: bool

    def cost(self, logs: Reals) -> _CostAndGradient:
        """Return the noise of the activations and its gradient."""
        z = logs[self.labels]
        width, slope = self._width(np.exp(z))
        noise = self.gain * np.exp(-2 * z)
        total = noise.sum()
        cost = (width / self.levels) ** 2 / 12 * total
        gradient = 2 * (width / self.levels**2 / 12 * slope * total) - 2 * cost * noise / (total or 1.0)
        return cost, _by_label(self.labels, gradient, len(logs))

    def touches(self, labels: Labels) -> bool:
        """Whether the cost depends on any of them."""
        return bool(np.isin(self.labels, labels).any())

    @property
    def unlikeness(self) -> float:
        """The noise (power), in units of the noise if each channel had a scale of its own; at least 1."""
        each = 2 * np.maximum(self.high, self.low) if self.symmetric else self.high + self.low
        whole = self._width(np.ones_like(self.high))[0]
        return float(whole**2 * self.gain.sum() / ((each**2 * self.gain).sum() or np.inf))

    def _width(self, factors: Reals) -> tuple[float, Reals]:
        if self.symmetric:
            top, gradient = _largest(np.maximum(self.high, self.low) * factors)
            return 2 * top, 2 * gradient
        (high, one), (low, other) = _largest(self.high * factors), _largest(self.low * factors)
        return high + low, one + other


@dataclass(frozen=True)
class Weights:
    """The noise of the weights of a layer.

    Attributes:
        size: the largest magnitude over the kernel taps, ``[G, O, C]``.
        columns: the labels of the input channels, ``[G, C]``.
        rows: the labels of the output channels, ``[G, O]``.
        spread: the variance of the input channels, times the number of taps, ``[G, C]``.
        levels: number of integers on each side of zero.
        per_row: whether each row has its own scale; otherwise one scale for the tensor.
        gain: factor of the noise: one over the total variance of the outputs, times further weights.
    """

    size: NDArray[np.float32]
    columns: Labels
    rows: Labels
    spread: Reals
    levels: int
    per_row: bool
    gain: float

    def cost(self, logs: Reals) -> _CostAndGradient:
        """Return the noise of the weights and its gradient."""
        shrunk = self.size * np.exp(-logs[self.columns]).astype(np.float32)[:, None, :]
        where = shrunk.argmax(axis=2)
        tops = np.take_along_axis(shrunk, where[:, :, None], 2)[:, :, 0].astype(np.float64)
        tied = np.take_along_axis(self.columns, where, 1)
        steps, gradient = (self._each if self.per_row else self._whole)(tops, tied, logs)
        inputs = np.exp(2 * logs[self.columns]) * self.spread
        scale = self.gain / self.levels**2 / 12
        cost = steps * inputs.sum() * scale
        by_inputs = _by_label(self.columns, 2 * steps * scale * inputs, len(logs))
        return cost, gradient * (inputs.sum() * scale) + by_inputs

    def touches(self, labels: Labels) -> bool:
        """Whether the cost depends on any of them."""
        return bool(np.isin(self.columns, labels).any() or np.isin(self.rows, labels).any())

    def _each(self, tops: Reals, tied: Labels, logs: Reals) -> _CostAndGradient:
        """Return the sum of the squared steps of all rows, for unscaled outputs, and its gradient."""
        squares = np.square(tops).reshape(-1)
        return squares.sum(), _by_label(tied, -2 * squares, len(logs))

    def _whole(self, tops: Reals, tied: Labels, logs: Reals) -> _CostAndGradient:
        """Do the same as `_each` for one scale per tensor, set by the largest weight of all rows."""
        rows = logs[self.rows].reshape(-1)
        top, share = _largest(tops.reshape(-1) * np.exp(rows))
        each = np.square(top) * np.exp(-2 * rows)
        total = each.sum()
        by_top = 2 * total / (top or 1.0) * share
        gradient = _by_label(self.rows, by_top - 2 * each, len(logs))
        return total, gradient - _by_label(tied, by_top, len(logs))


Term = Activations | Weights


def _by_label(labels: Labels, values: Reals, count: int) -> Reals:
    """Return the sum of ``values`` for each label, ``[count]``."""
    return np.asarray(np.bincount(labels.reshape(-1), values.reshape(-1), count), np.float64)


def _largest(values: Reals) -> tuple[float, Reals]:
    """Return the smoothed maximum, and its gradient with respect to the logarithms of ``values``."""
    top = values.max(initial=0.0)
    if top == 0:
        return 0.0, np.zeros_like(values)
    powers = (values / top) ** POWER
    norm = top * powers.sum() ** (1 / POWER)
    return norm, norm * powers / powers.sum()


def noise(terms: Sequence[Term], logs: Reals) -> float:
    """Return the predicted noise of all terms."""
    return sum(term.cost(logs)[0] for term in terms)


def minimize_noise(terms: Sequence[Term], count: int) -> Reals:
    """Return the logarithms of the factors that minimize the noise, one for each of ``count`` labels.

    The minimum is found by Adam (Kingma and Ba, 2015) on the logarithm of the noise, with a decaying learning
    rate. The factor of the label `FIXED` stays 1.
    """
    logs, mean, square = np.zeros(count), np.zeros(count), np.zeros(count)
    for step, rate in enumerate(np.geomspace(FIRST_RATE, LAST_RATE, STEPS), start=1):
        costs, gradients = zip(*(term.cost(logs) for term in terms), strict=True)
        gradient = np.sum(gradients, axis=0) / (sum(costs) or 1.0)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        move = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.99**step)) + 1e-9)
        move[FIXED] = 0.0
        logs = logs - rate * move
    return logs


WEIGHT_SHARE = 0.5
"""Share of the weight noise that is left after GPTQ compensation of the rounding errors."""


ROWS = 256
"""Approximate number of rows that represent a matrix with one scale per row."""


@dataclass(frozen=True)
class _Reader:
    """A node with constant weights, and the labels of its channels.

    Attributes:
        data: name of its data input.
        output: name of its output.
        spec: the number format of its weights. None if they are float; then only its input has noise.
        weight: the weights, ``[G, O, C, taps]``.
        columns: the labels of the input channels, ``[G, C]``.
        rows: the labels of the output channels, ``[G, O]``.
    """

    data: str
    output: str
    spec: QuantSpec | None
    weight: NDArray[np.float32]
    columns: Labels
    rows: Labels

    @property
    def is_free(self) -> bool:
        """Whether factors can change the noise of its weights or of its input."""
        one_scale = self.spec is not None and self.spec.axis is None
        return bool(self.columns.any() or (self.rows.any() and one_scale))


class NoiseModelBuilder:
    """A builder of the noise terms that depend on the channel factors of a draft.

    Attributes:
        needed: names of the tensors to measure.
    """

    def __init__(self, draft: Draft, channels: Channels, raw: Collection[str] = ()) -> None:
        """Find the layers and groups of ``draft`` with channels that are not fixed.

        Args:
            draft: the calibrated draft.
            channels: the labels of its channels.
            raw: names of tensors whose small channels are small by their unit, and not silent.
        """
        self._channels = channels
        self._raw = raw
        self._readers = [reader for reader in _readers(draft, channels) if reader.is_free]
        groups = draft.plan.groups.values()
        self._groups = [g for g in groups if any(channels.of(name).any() for name in g.observed_tensors)]
        known = {reader.output for reader in self._readers}
        self._shared = {
            value.name
            for node in draft.reference.graph
            for value in node.inputs
            if value is not None and node.outputs[0].name not in known
        }
        self.needed = tuple(dict.fromkeys(self._needed()))

    def _needed(self) -> list[str]:
        ends = [name for reader in self._readers for name in (reader.data, reader.output)]
        observed = [name for group in self._groups for name in group.observed_tensors]
        return [*ends, *observed]

    def terms(self, seen: Mapping[str, ChannelMoments]) -> list[Term]:
        """Return one term for each scale of activations, and one for the quantized weights of each layer.

        The noise of a channel is weighted by the weights of the layers that read it, relative to the variance
        of their outputs. All layers have equal weight. Instead, the noise could be measured at the outputs of
        the model, with one tensor quantized at a time. That takes longer, and gave no better factors.

        Args:
            seen: the statistics of all tensors in `needed`, by name.
        """
        gains = [1 / (seen[reader.output].variance.sum() or np.inf) for reader in self._readers]
        reach = self._reach(gains)
        steps = [self._step(group, seen, reach) for group in self._groups]
        weights = [
            _weights(reader, reader.spec, seen, gain)
            for reader, gain in zip(self._readers, gains, strict=True)
            if reader.spec is not None
        ]
        return [*steps, *weights]

    def _reach(self, gains: Sequence[float]) -> dict[str | None, Reals]:
        """Return the noise gain of each channel from a tensor to its layers.

        The key None has the sums over all tensors, one for each label.
        """
        reach: dict[str | None, Reals] = {None: np.zeros(self._channels.count)}
        for reader, gain in zip(self._readers, gains, strict=True):
            each = np.square(reader.weight).sum(axis=(1, 3), dtype=np.float64).reshape(-1) * gain
            labels = reader.columns.reshape(-1)
            reach[None] += np.bincount(labels, each, self._channels.count)
            reach[reader.data] = reach.get(reader.data, 0.0) + each
        return reach

    def _step(
        self, group: Group, seen: Mapping[str, ChannelMoments], reach: Mapping[str | None, Reals]
    ) -> Activations:
        """Return the term of all tensors that share the scale of ``group``."""
        parts = [self._part(name, group, seen[name], reach) for name in group.observed_tensors]
        labels, high, low, gain = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        lowest, highest = group.spec.limits
        return Activations(labels, high, low, gain, highest - lowest, group.spec.symmetric)

    def _part(
        self, name: str, group: Group, seen: ChannelMoments, reach: Mapping[str | None, Reals]
    ) -> tuple[Labels, Reals, Reals, Reals]:
        """Return the labels, largest values, negated smallest values and gains of one tensor."""
        labels = self._channels.of(name).reshape(-1)
        high, low, silent = seen.ends(0.0 if name in self._raw else SILENT)
        low, high = -np.clip(low, group.bounds[0], 0.0), np.clip(high, 0.0, group.bounds[1])
        gain = reach[None][labels] if name in self._shared or name not in reach else reach[name]
        each = gain.sum(keepdims=True) if labels.size == 1 else gain
        return labels, high, low, np.where(silent, 0.0, each)


def _readers(draft: Draft, channels: Channels) -> Iterator[_Reader]:
    """Yield the layers with constant weights whose data or weights are quantized."""
    specs = {(point.consumer, point.input_index): point.spec for point in draft.plan.points}
    quantized = {point.tensor for point in draft.plan.points}
    for node in draft.reference.graph:
        if (matrix := matrices_of(node)) is not None:
            data = node.inputs[WEIGHTED[node.op_type].data]
            spec = specs.get((name_of(node), WEIGHTED[node.op_type].weight))
            if data is not None and (spec is not None or data.name in quantized):
                yield _reader(node, name_of(data), spec, matrix, channels)


def _reader(
    node: ir.Node, data: str, spec: QuantSpec | None, matrix: NDArray[np.float32], channels: Channels
) -> _Reader:
    values, output = weights_of(node), name_of(node.outputs[0])
    assert values is not None
    groups, outputs, columns = matrix.shape
    inputs = _inputs(node, values.shape, columns)
    labels = np.broadcast_to(channels.of(data).reshape(-1), groups * inputs)
    rows = np.broadcast_to(channels.of(output).reshape(-1), groups * outputs)
    weight = matrix.reshape(groups, outputs, inputs, columns // inputs)
    return _Reader(data, output, spec, weight, labels.reshape(groups, -1), rows.reshape(groups, -1))


def _inputs(node: ir.Node, shape: Sequence[int], columns: int) -> int:
    """Return the number of input channels per group: the columns without the kernel taps."""
    return columns // int(np.prod(shape[2:])) if "Conv" in node.op_type else columns


def _weights(reader: _Reader, spec: QuantSpec, seen: Mapping[str, ChannelMoments], gain: float) -> Weights:
    variance = seen[reader.data].variance
    lowest, highest = spec.limits
    every = 1 if spec.axis is None else max(1, reader.weight.shape[1] // ROWS)
    return Weights(
        size=np.abs(reader.weight[:, ::every]).max(axis=3),
        columns=reader.columns,
        rows=reader.rows[:, ::every],
        spread=np.broadcast_to(variance, reader.columns.size).reshape(reader.columns.shape)
        * reader.weight.shape[3],
        levels=(highest - lowest) // 2,
        per_row=spec.axis is not None,
        gain=gain * WEIGHT_SHARE * reader.weight.shape[1] / len(range(0, reader.weight.shape[1], every)),
    )
