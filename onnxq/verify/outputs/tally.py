"""Add up how far one output of a quantized model is from that of the float model, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.core.numerics import decibels
from onnxq.verify.outputs.next_token import NextToken, NextTokenTally
from onnxq.verify.outputs.output_kinds import OutputKind
from onnxq.verify.outputs.row_origin import Rows
from onnxq.verify.outputs.row_sets import differing_axes, equal_rows, measured_rows, paired_sets
from onnxq.verify.outputs.scores import is_peaked

Array = NDArray[np.generic]

PART = 2**22
"""The number of elements that are compared at a time."""


@dataclass(frozen=True)
class OutputQuality:
    """The quality of one output.

    Attributes:
        sqnr: 10 log10(signal power / power of the difference), in dB, over all samples and all values
            that are finite in the float model; NaN if there are none, minus infinity if the quantized
            model gave NaN or infinity for one of them. The signal of integers, such as a picture's bytes, is
            their variance, because their zero has no meaning. Rows that a selection made are compared as a
            set (`row_sets`).
        agreement: the share (0 … 1) of equal decisions: the largest class, equal values of an integer
            output that is no quantity, or rows of a set that both models have; None if the output makes
            no decision (a single value, no classes, or no scores of classes, as `scores` tells).
        finite: whether the quantized model gave finite numbers wherever the float model did.
        incomparable: the number of batches that were left out, because the output had another shape.
        next_token: how the distributions of the next token differ; None if the output gives none.
    """

    sqnr: float
    agreement: float | None
    finite: bool = True
    incomparable: int = 0
    next_token: NextToken | None = None


@dataclass
class Tally:
    """Sums over the samples of one output.

    Attributes:
        kind: how the output is compared.
        noise: the power of the difference, for each batch.
    """

    kind: OutputKind
    noise: list[float] = field(default_factory=list)
    _power: float = 0.0
    _total: float = 0.0
    _reals: int = 0
    _of_integers: bool = False
    _agreed: int = 0
    _decisions: int = 0
    _peaked: bool = False
    _finite: bool = True
    _incomparable: int = 0
    _next_token: NextTokenTally = field(default_factory=NextTokenTally)

    def add(self, reference: Any, actual: Any, feeds: Mapping[str, Any] | None = None) -> None:
        """Add one batch, with what was fed if that is known. Outputs that are sequences or maps are ignored.

        The number of rows of an output may depend on its values (detections): if the sizes of one axis
        differ, its rows are compared as a set. Other shapes cannot be compared.
        """
        if not isinstance(reference, np.ndarray):
            return
        self.noise.append(0.0)
        differing = differing_axes(reference, actual)
        rows = self.kind.rows_of(reference.ndim) or _only(differing)
        if rows is not None and differing is not None and set(differing) <= {rows.axis}:
            self._add_rows(reference, actual, rows)
        elif reference.shape == actual.shape:
            self._add_positions(reference, actual)
            self._add_tokens(reference, actual, feeds or {})
        else:
            self._incomparable += 1

    def _add_tokens(self, reference: Array, actual: Array, feeds: Mapping[str, Any]) -> None:
        words = self.kind.vocabulary
        if words is not None and words.gives_logits(reference):
            self._next_token.add(reference, actual, words.following(feeds, reference.shape[:-1]))

    def _add_positions(self, reference: Array, actual: Array) -> None:
        if self._is_measured(reference):
            for one, other in _in_parts(reference, actual):
                known = np.isfinite(one)
                expected, given = (array[known].astype(np.float64) for array in (one, other))
                self._finite = self._finite and bool(np.isfinite(given).all())
                self._add_signal(expected, reference.dtype)
                self.noise[-1] += float(np.square(expected - given).sum())
        if self.kind.decides is False and self._is_measured(reference):
            return
        decisions = self._decided(reference)
        self._peaked = self._peaked or self._shows_scores(reference)
        self._decisions += decisions.size
        self._agreed += int(np.count_nonzero(decisions == self._decided(actual)))

    def _add_rows(self, reference: Array, actual: Array, rows: Rows) -> None:
        measured = self._is_measured(reference)
        for one, other in paired_sets(reference, actual, rows):
            if measured:
                expected, given = _finite_rows(one), _finite_rows(other)
                self._finite = self._finite and len(one) - len(expected) >= len(other) - len(given)
                self._add_signal(expected, reference.dtype)
                found = measured_rows(expected, given)
                self.noise[-1] += found.noise
            else:
                found = equal_rows(one, other)
            if not measured or one.shape[1] > 1:  # a number alone does not tell which row it is
                self._agreed += found.equal
                self._decisions += found.rows
                self._peaked = True

    def _is_measured(self, output: Array) -> bool:
        return output.dtype.kind == "f" or (self.kind.measured and output.dtype.kind in "iu")

    def _decided(self, output: Array) -> Array:
        """The largest class of each decision. Integers are decisions themselves, unless they are measured."""
        if not self._is_measured(output):
            return output
        axis = class_axis(output)
        return np.empty(0, np.int64) if axis is None else np.asarray(output.argmax(axis=axis))

    def _shows_scores(self, output: Array) -> bool:
        """Whether nothing speaks against it that the largest entries are decisions."""
        axis = class_axis(output)
        return self.kind.decides is not None or axis is None or is_peaked(output, axis)

    def _add_signal(self, values: NDArray[np.float64], kind: np.dtype[np.generic]) -> None:
        self._power += float(np.square(values).sum())
        self._total += float(values.sum())
        self._reals += values.size
        self._of_integers = kind.kind != "f"

    @property
    def signal(self) -> float:
        """The power of the float model's output; of integers, about their mean, unless all are equal."""
        variance = self._power - self._total**2 / self._reals if self._reals else 0.0
        return variance if self._of_integers and variance > 0 else self._power

    def quality(self) -> OutputQuality:
        """Summarize all batches so far."""
        return OutputQuality(
            sqnr=self._sqnr(),
            agreement=self._agreed / self._decisions if self._decisions and self._peaked else None,
            finite=self._finite,
            incomparable=self._incomparable,
            next_token=self._next_token.result(),
        )

    def _sqnr(self) -> float:
        if not self._finite:
            return -math.inf
        return decibels(self.signal, sum(self.noise)) if self._reals else math.nan


def _in_parts(reference: Array, actual: Array) -> Iterator[tuple[Array, Array]]:
    """Split large arrays: doubles of all their elements at once would take much memory."""
    if reference.size <= PART:
        yield reference, actual
        return
    one, other = reference.reshape(-1), actual.reshape(-1)
    for start in range(0, reference.size, PART):
        yield one[start : start + PART], other[start : start + PART]


def _only(axes: tuple[int, ...] | None) -> Rows | None:
    return Rows(axes[0], batched=axes[0] > 0) if axes is not None and len(axes) == 1 else None


def _finite_rows(rows: Array) -> NDArray[np.float64]:
    return rows[np.isfinite(rows).all(1)].astype(np.float64)


def class_axis(output: Any) -> int | None:
    """The axis of the class scores: the last one of [N, C] and [N, S, C], axis 1 of [N, C, H, W].

    None if there are no scores: for integers, and for one value per sample.
    """
    if not isinstance(output, np.ndarray) or not np.issubdtype(output.dtype, np.floating):
        return None
    axis = 1 if output.ndim >= 4 else output.ndim - 1
    return None if output.ndim < 2 or output.shape[axis] < 2 else axis
