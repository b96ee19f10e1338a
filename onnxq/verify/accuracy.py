"""Measure how far a quantized model is from its float original, output by output."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.collect import run_batch
from calibrators.data.bad_samples import OnBad, refuse
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.core.numerics import decibels

KEPT_BYTES = 256 * 2**20
"""Bytes of float outputs to keep; for the samples beyond, the float model runs again in each evaluation."""

Array = NDArray[np.generic]
Model = ir.Model | str | os.PathLike[str]


@dataclass(frozen=True)
class OutputQuality:
    """The quality of one output.

    Attributes:
        sqnr: 10 log10(signal power / power of the difference), in dB, over all samples and all values
            that are finite in the float model; NaN if there are none, minus infinity if the quantized
            model gave NaN or infinity for one of them.
        agreement: the share (0 … 1) of equal decisions: the largest class, or equal values of an
            integer output; None if the output makes no decision (a single value, or no classes).
        finite: whether the quantized model gave finite numbers wherever the float model did.
    """

    sqnr: float
    agreement: float | None
    finite: bool = True


@dataclass(frozen=True)
class Quality:
    """The quality of all outputs.

    Attributes:
        outputs: the quality of each output, by name.
        samples: the number of samples that it was measured on.
        each: the share of each batch in `noise`, if outputs hold float numbers; `noise` is their sum.
    """

    outputs: Mapping[str, OutputQuality]
    samples: int
    each: tuple[float, ...] = ()

    @property
    def sqnr(self) -> float:
        """The worst output's SQNR, in dB."""
        return min((o.sqnr for o in self.outputs.values() if not math.isnan(o.sqnr)), default=math.nan)

    @property
    def noise(self) -> float:
        """The figure to rank models by, less is better: noise power over signal power, mean of all outputs.

        If no output holds float numbers, it is the mean share of different decisions instead.
        """
        ratios = [10 ** (-o.sqnr / 10) for o in self.outputs.values() if not math.isnan(o.sqnr)]
        if not ratios:
            ratios = [1 - o.agreement for o in self.outputs.values() if o.agreement is not None]
        return sum(ratios) / len(ratios) if ratios else math.nan

    @property
    def agreement(self) -> float | None:
        """The worst output's agreement, 0 … 1."""
        return min((o.agreement for o in self.outputs.values() if o.agreement is not None), default=None)


@dataclass
class _Tally:
    """Sums over the samples of one output."""

    signal: float = 0.0
    noise: list[float] = field(default_factory=list)
    agreed: int = 0
    decisions: int = 0
    finite: bool = True
    reals: int = 0

    def add(self, reference: Any, actual: Any) -> None:
        """Add one batch. Outputs that are sequences or maps are ignored.

        The shape of an output may depend on its values (detections). If the shapes differ, all decisions
        of the batch count as different, and no values are compared.
        """
        if not isinstance(reference, np.ndarray):
            return
        decisions = _decisions(reference)
        self.decisions += decisions.size
        if reference.shape != actual.shape:
            return
        self.agreed += int(np.count_nonzero(decisions == _decisions(actual)))
        if np.issubdtype(reference.dtype, np.floating):
            self._add_reals(reference.astype(np.float64), actual.astype(np.float64))

    def _add_reals(self, expected: NDArray[np.float64], given: NDArray[np.float64]) -> None:
        known = np.isfinite(expected)
        expected, given = expected[known], given[known]
        self.reals += expected.size
        self.finite = self.finite and bool(np.isfinite(given).all())
        self.signal += float(np.square(expected).sum())
        self.noise.append(float(np.square(expected - given).sum()))

    def _sqnr(self) -> float:
        if not self.finite:
            return -math.inf
        return decibels(self.signal, sum(self.noise)) if self.reals else math.nan

    def quality(self) -> OutputQuality:
        return OutputQuality(
            sqnr=self._sqnr(),
            agreement=self.agreed / self.decisions if self.decisions else None,
            finite=self.finite,
        )


def _decisions(output: Array) -> Array:
    """The largest class of each decision. Integer outputs are decisions themselves; others give none."""
    if not np.issubdtype(output.dtype, np.floating):
        return output
    axis = class_axis(output)
    return np.empty(0, np.int64) if axis is None else np.asarray(output.argmax(axis=axis))


def class_axis(output: Any) -> int | None:
    """The axis of the class scores: the last one of [N, C] and [N, S, C], axis 1 of [N, C, H, W].

    None if there are no scores: for integers, and for one value per sample.
    """
    if not isinstance(output, np.ndarray) or not np.issubdtype(output.dtype, np.floating):
        return None
    axis = 1 if output.ndim >= 4 else output.ndim - 1
    return None if output.ndim < 2 or output.shape[axis] < 2 else axis


class AccuracyEvaluator:
    """Compares quantized models with the float model on a set of samples.

    The float model runs once per sample, and its outputs are kept as long as they are small.
    """

    def __init__(
        self,
        float_model: Model,
        samples: Iterable[Sample],
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        on_bad: OnBad | None = None,
    ) -> None:
        """Prepare to run ``float_model`` on ``samples``.

        Args:
            float_model: a model, or the path of one.
            samples: read once, one after the other, in the first evaluation.
            providers: execution providers, the preferred one first.
            threads: threads within a node; 0 leaves the number to ONNX Runtime.
            on_bad: called for samples that the float model does not take, which are then skipped; None:
                they are errors.

        Raises:
            CalibrationError: the model does not load.
        """
        self.float_model = float_model
        self._reference = open_session(float_model, providers=providers, threads=threads)
        self._stream = iter(samples)
        self._options = {"providers": providers, "threads": threads}
        self._on_bad = on_bad
        self._known: list[tuple[Sample, list[Any] | None]] = []
        self._kept = 0

    @property
    def samples(self) -> list[Sample]:
        """The samples that the float model takes, as far as they have been read."""
        return [sample for sample, _ in self._known]

    def on(self, samples: Iterable[Sample]) -> AccuracyEvaluator:
        """A copy of this evaluator that uses other ``samples``."""
        other = copy.copy(self)
        other._stream, other._known, other._kept = iter(samples), [], 0
        return other

    def skipping(self, on_bad: OnBad) -> AccuracyEvaluator:
        """A copy of this evaluator that calls ``on_bad`` for samples that the float model does not take."""
        other = copy.copy(self)
        other._on_bad = on_bad
        return other

    def evaluate(
        self,
        model: Model,
        on_sample: Callable[[int], None] | None = None,
        look: Callable[[Sequence[Any], Sequence[Any]], None] | None = None,
    ) -> Quality:
        """Measure how close ``model`` is to the float model.

        Outputs are matched by position and named as in the float model.

        Args:
            model: a model, or the path of one.
            on_sample: called with the number of samples done so far.
            look: called for each batch with the outputs of the float model and those of ``model``.

        Raises:
            CalibrationError: ``model`` does not load, or one of the two models does not take a sample.
        """
        actual = open_session(model, **self._options)  # type: ignore[arg-type]
        tallies = {output.name: _Tally() for output in self._reference.get_outputs()}
        seen = 0
        for sample, expected in self._expected():
            given = _run(actual, sample)
            for tally, one, other in zip(tallies.values(), expected, given, strict=True):
                tally.add(one, other)
            if look is not None:
                look(expected, given)
            seen += sample.count
            if on_sample is not None:
                on_sample(seen)
        return _quality(tallies, seen)

    def _expected(self) -> Iterator[tuple[Sample, list[Any]]]:
        """Yield each sample with the float model's outputs for it."""
        for sample, outputs in self._known:
            yield sample, _run(self._reference, sample) if outputs is None else outputs
        for sample in self._stream:
            try:
                outputs = _run(self._reference, sample)
            except CalibrationError as error:
                if self._on_bad is None:
                    refuse(error)
                self._on_bad(error, sample.count)
                continue
            self._known.append((sample, self._if_small(outputs)))
            yield sample, outputs

    def _if_small(self, outputs: list[Any]) -> list[Any] | None:
        """``outputs``, if there is room to keep them."""
        size = sum(getattr(array, "nbytes", 0) for array in outputs)
        if self._kept + size > KEPT_BYTES:
            return None
        self._kept += size
        return outputs


def outcome(
    names: Sequence[str], pairs: Iterable[tuple[Sequence[Any], Sequence[Any]]], samples: int
) -> Quality:
    """Measure how close outputs are to the expected ones.

    Args:
        names: the names of the outputs.
        pairs: for each batch, the expected outputs and the actual ones.
        samples: the number of samples in all batches.
    """
    tallies = {name: _Tally() for name in names}
    for expected, given in pairs:
        for tally, one, other in zip(tallies.values(), expected, given, strict=True):
            tally.add(one, other)
    return _quality(tallies, samples)


def _quality(tallies: Mapping[str, _Tally], samples: int) -> Quality:
    real = [tally for tally in tallies.values() if tally.reals and tally.signal]
    shares = zip(*([noise / tally.signal for noise in tally.noise] for tally in real), strict=False)
    return Quality(
        outputs={name: tally.quality() for name, tally in tallies.items()},
        samples=samples,
        each=tuple(sum(share) / len(real) for share in shares),
    )


def _run(session: ort.InferenceSession, sample: Sample) -> list[Any]:
    return run_batch(session, [output.name for output in session.get_outputs()], sample)
