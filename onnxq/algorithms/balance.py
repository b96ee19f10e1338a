"""The factors of channels with the least noise, as predicted from what was measured of the float model.

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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algorithms.channels import FIXED
from onnxq.algorithms.reshaping import Labels

Reals = NDArray[np.float64]
_Graded = tuple[float, Reals]
"""A cost, and its derivatives by the logarithms of all factors."""

POWER = 32
"""The largest of several is taken as their norm of this power, which has derivatives."""

STEPS = 150
FIRST_RATE, LAST_RATE = 0.2, 0.005
"""Of the logarithms of the factors, a step."""


@dataclass(frozen=True)
class Step:
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


Term = Step | Weights


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


def balance(terms: Sequence[Term], count: int) -> Reals:
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
