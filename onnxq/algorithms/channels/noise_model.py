"""The quantization noise as a function of the factors of channels, and its minimum.

The factors of channels with the least noise, as predicted from what was measured of the float model.

A tensor of step D, quantized with factors s, has the noise ``D^2 / 12 / s[c]^2`` in channel c, in its own
units. D grows with the largest ``s[c] * |x[c]|``: factors that bring all channels to one size lessen the
noise of the small ones. Weights take the factors in and have a step for each row, ``max_c |W[o, c]| / s[c] /
127``; their noise is multiplied by the inputs, ``s[c] x[c]``: so they want all columns to be of one size.
Both are counted at the outputs of the layers that read them, over the variance there, and added up.

Every term is a product of sums and maxima of powers of factors, so the logarithm of their sum is convex in
``log s`` (a geometric program; Boyd et al., A tutorial on geometric programming, 2007): gradients lead to
the least value there is. Cross-layer equalization (Nagel et al., Data-free quantization through weight
equalization and bias correction, 2019) and SmoothQuant (Xiao et al., 2022) take fixed compromises between the
same two wishes instead.

The terms of the noise that factors of channels can change, of a plan and of what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.channel_moments import ChannelMoments
from onnxq.algorithms.channels.labels import FIXED, Channels, Labels
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.matrices import matrices_of, weights_of
from onnxq.core.plan import Group, QuantSpec
from onnxq.graph.nodes import name_of
from onnxq.graph.operators import WEIGHTED

Reals = NDArray[np.float64]


_Graded = tuple[float, Reals]
"""A cost, and its derivatives by the logarithms of all factors."""


POWER = 32
"""The largest of several is taken as their norm of this power, which has derivatives."""


STEPS = 150


FIRST_RATE, LAST_RATE = 0.2, 0.005
"""Of the logarithms of the factors, a step."""


@dataclass(frozen=True)
class Iteration:
    """Tensors that share one scale, channel by channel one behind the other.

    Attributes:
        labels: of the channels.
        high, low: the largest value, and the negated smallest; not negative.
        gain: how much of a channel's noise reaches the outputs of layers, over the variance there.
        levels: steps between the ends of the range.
        symmetric: the range has 0 in the middle.
    """

    labels: Labels
    high: Reals
    low: Reals
    gain: Reals
    levels: int
    symmetric: bool

    def cost(self, logs: Reals) -> _Graded:
        """Noise of the activations."""
        z = logs[self.labels]
        width, width_grade = self._width(np.exp(z))
        noise = self.gain * np.exp(-2 * z)
        total = noise.sum()
        cost = (width / self.levels) ** 2 / 12 * total
        grade = 2 * (width / self.levels**2 / 12 * width_grade * total) - 2 * cost * noise / (total or 1.0)
        return cost, _by_label(self.labels, grade, len(logs))

    def touches(self, labels: Labels) -> bool:
        """Whether the cost depends on any of them."""
        return bool(np.isin(self.labels, labels).any())

    def _width(self, factors: Reals) -> tuple[float, Reals]:
        if self.symmetric:
            top, grade = _largest(np.maximum(self.high, self.low) * factors)
            return 2 * top, 2 * grade
        (high, one), (low, other) = _largest(self.high * factors), _largest(self.low * factors)
        return high + low, one + other


@dataclass(frozen=True)
class Weights:
    """The weights of a layer.

    Attributes:
        size: [G, O, C], the largest magnitude over the taps.
        columns: [G, C], the labels of the input.
        rows: [G, O], the labels of the output.
        spread: [G, C], the variance of the input.
        levels: integers on each side of zero.
        per_row: there is a scale for each row; otherwise one for all.
        gain: one over the variance of all outputs, and what else the noise is weighted by.
    """

    size: NDArray[np.float32]
    columns: Labels
    rows: Labels
    spread: Reals
    levels: int
    per_row: bool
    gain: float

    def cost(self, logs: Reals) -> _Graded:
        """Noise of the weights."""
        shrunk = self.size * np.exp(-logs[self.columns]).astype(np.float32)[:, None, :]
        where = shrunk.argmax(axis=2)
        tops = np.take_along_axis(shrunk, where[:, :, None], 2)[:, :, 0].astype(np.float64)
        tied = np.take_along_axis(self.columns, where, 1)
        steps, grade = (self._each if self.per_row else self._whole)(tops, tied, logs)
        inputs = np.exp(2 * logs[self.columns]) * self.spread
        scale = self.gain / self.levels**2 / 12
        cost = steps * inputs.sum() * scale
        by_inputs = _by_label(self.columns, 2 * steps * scale * inputs, len(logs))
        return cost, grade * (inputs.sum() * scale) + by_inputs

    def touches(self, labels: Labels) -> bool:
        """Whether the cost depends on any of them."""
        return bool(np.isin(self.columns, labels).any() or np.isin(self.rows, labels).any())

    def _each(self, tops: Reals, tied: Labels, logs: Reals) -> _Graded:
        """Squares of the steps of all rows, in units of the unscaled outputs."""
        squares = np.square(tops).reshape(-1)
        return squares.sum(), _by_label(tied, -2 * squares, len(logs))

    def _whole(self, tops: Reals, tied: Labels, logs: Reals) -> _Graded:
        """The same where one row's largest weight decides for all."""
        rows = logs[self.rows].reshape(-1)
        top, share = _largest(tops.reshape(-1) * np.exp(rows))
        each = np.square(top) * np.exp(-2 * rows)
        total = each.sum()
        by_top = 2 * total / (top or 1.0) * share
        grade = _by_label(self.rows, by_top - 2 * each, len(logs))
        return total, grade - _by_label(tied, by_top, len(logs))


Term = Iteration | Weights


def _by_label(labels: Labels, values: Reals, count: int) -> Reals:
    """The sum of the values of each label."""
    return np.asarray(np.bincount(labels.reshape(-1), values.reshape(-1), count), np.float64)


def _largest(values: Reals) -> tuple[float, Reals]:
    """About the largest value, and its derivatives by the logarithms of all."""
    top = values.max(initial=0.0)
    if top == 0:
        return 0.0, np.zeros_like(values)
    powers = (values / top) ** POWER
    norm = top * powers.sum() ** (1 / POWER)
    return norm, norm * powers / powers.sum()


def noise(terms: Sequence[Term], logs: Reals) -> float:
    """The predicted noise of all terms."""
    return sum(term.cost(logs)[0] for term in terms)


def minimize_noise(terms: Sequence[Term], count: int) -> Reals:
    """The logarithms of the factors with the least noise, one for each of ``count`` labels; the first is 0.

    Adam (Kingma and Ba, 2015) on the logarithm of the noise, with a rate that falls to the end.
    """
    logs, mean, square = np.zeros(count), np.zeros(count), np.zeros(count)
    for step, rate in enumerate(np.geomspace(FIRST_RATE, LAST_RATE, STEPS), start=1):
        costs, grades = zip(*(term.cost(logs) for term in terms), strict=True)
        grade = np.sum(grades, axis=0) / (sum(costs) or 1.0)
        mean, square = 0.9 * mean + 0.1 * grade, 0.99 * square + 0.01 * grade**2
        move = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.99**step)) + 1e-9)
        move[FIXED] = 0.0
        logs = logs - rate * move
    return logs


WEIGHT_SHARE = 0.5
"""What is left of the weights' noise once they are rounded with an eye on their inputs."""


ROWS = 256
"""Of the rows of a matrix, each with a scale of its own, about so many stand for all."""


@dataclass(frozen=True)
class _Reader:
    """A node with constant weights, beside what the channels are to it.

    Attributes:
        data: the tensor that it reads.
        output: the tensor that it computes.
        spec: the number format of its weights; None: they are float, and only hear the noise of its input.
        weight: [G, O, C, taps].
        columns: [G, C], the labels of its input.
        rows: [G, O], the labels of its output.
    """

    data: str
    output: str
    spec: QuantSpec | None
    weight: NDArray[np.float32]
    columns: Labels
    rows: Labels

    @property
    def is_free(self) -> bool:
        """Whether factors change the noise of its weights, or that of its input."""
        one_scale = self.spec is not None and self.spec.axis is None
        return bool(self.columns.any() or (self.rows.any() and one_scale))


class NoiseModelBuilder:
    """The terms of the noise that the channels of a draft can change.

    Attributes:
        needed: the tensors to be measured.
    """

    def __init__(self, draft: Draft, channels: Channels) -> None:
        """What of ``draft.exact`` and its plan has channels that are not fixed."""
        self._channels = channels
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
        """One for every scale and one for the weights of every layer: what noise each makes.

        How noise spreads over channels is taken from the layers that read them, and all layers count alike:
        noise is held against the variance of their outputs. What of it reaches the outputs of the model could
        be measured, each tensor quantized alone; that takes time, and gave no better factors.

        Args:
            seen: moments of all `needed`.
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
        """How much of a channel's noise the layers give on: those that read a tensor; None: all, by label."""
        reach: dict[str | None, Reals] = {None: np.zeros(self._channels.count)}
        for reader, gain in zip(self._readers, gains, strict=True):
            each = np.square(reader.weight).sum(axis=(1, 3), dtype=np.float64).reshape(-1) * gain
            labels = reader.columns.reshape(-1)
            reach[None] += np.bincount(labels, each, self._channels.count)
            reach[reader.data] = reach.get(reader.data, 0.0) + each
        return reach

    def _step(
        self, group: Group, seen: Mapping[str, ChannelMoments], reach: Mapping[str | None, Reals]
    ) -> Iteration:
        """All channels of all tensors that decide on a scale."""
        parts = [self._part(name, group, seen[name], reach) for name in group.observed_tensors]
        labels, high, low, gain = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        lowest, highest = group.spec.limits
        return Iteration(labels, high, low, gain, highest - lowest, group.spec.symmetric)

    def _part(
        self, name: str, group: Group, seen: ChannelMoments, reach: Mapping[str | None, Reals]
    ) -> tuple[Labels, Reals, Reals, Reals]:
        """Labels, largest values, negated smallest ones and gains of one tensor."""
        labels = self._channels.of(name).reshape(-1)
        high, low, silent = seen.ends()
        low, high = -np.clip(low, group.bounds[0], 0.0), np.clip(high, 0.0, group.bounds[1])
        gain = reach[None][labels] if name in self._shared or name not in reach else reach[name]
        return labels, high, low, np.where(silent, 0.0, np.broadcast_to(gain, labels.shape))


def _readers(draft: Draft, channels: Channels) -> Iterator[_Reader]:
    """The nodes with matrices of constant weights that read something quantized, or are so themselves."""
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
    """Input channels of a group: what is not taps of the kernel."""
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
