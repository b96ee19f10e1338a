"""How far a quantized model is from its float original, output by output."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.collect import run_batch
from calibrators.errors import CalibrationError
from calibrators.samples import Sample
from calibrators.session import open_session
from calibrators.usable import OnBad, refuse
from onnxq.numerics import decibels

Array = NDArray[np.generic]
Model = ir.Model | str | os.PathLike[str]


@dataclass(frozen=True)
class OutputQuality:
    """One output.

    Attributes:
        sqnr: 10 log10(signal power / power of the difference), in dB, over all samples and all values
            that are finite in the float model; NaN if there are none, minus infinity if the quantized
            model gave NaN or infinity for one of them.
        agreement: the share (0 … 1) of equal decisions: the largest class, or equal values of an
            integer output; None where nothing is decided (one value, or no classes).
        finite: whether the quantized model gave finite numbers wherever the float one did.
    """

    sqnr: float
    agreement: float | None
    finite: bool = True


@dataclass(frozen=True)
class Quality:
    """All outputs by name, and the samples they were measured on."""

    outputs: Mapping[str, OutputQuality]
    samples: int

    @property
    def sqnr(self) -> float:
        """The worst output's SQNR, in dB."""
        return min((o.sqnr for o in self.outputs.values() if not math.isnan(o.sqnr)), default=math.nan)

    @property
    def agreement(self) -> float | None:
        """The worst output's agreement, 0 … 1."""
        return min((o.agreement for o in self.outputs.values() if o.agreement is not None), default=None)


@dataclass
class _Tally:
    """Sums over samples of one output; memory does not grow with them."""

    signal: float = 0.0
    noise: float = 0.0
    agreed: int = 0
    decisions: int = 0
    finite: bool = True
    reals: int = 0

    def add(self, reference: Any, actual: Any) -> None:
        """Fold in one sample. Sequences and maps, which some models give, are passed over.

        Where the number of values itself depends on the values (detections), none of the decisions
        of a sample are equal if it differs, and no values can be compared.
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
        self.noise += float(np.square(expected - given).sum())

    def _sqnr(self) -> float:
        if not self.finite:
            return -math.inf
        return decibels(self.signal, self.noise) if self.reals else math.nan

    def quality(self) -> OutputQuality:
        return OutputQuality(
            sqnr=self._sqnr(),
            agreement=self.agreed / self.decisions if self.decisions else None,
            finite=self.finite,
        )


def _decisions(output: Array) -> Array:
    """Which class wins: along the last axis of [N, C] and [N, S, C], along axis 1 of [N, C, H, W].

    Outputs that are no scores decide by themselves (integers), or nothing (one value a sample).
    """
    if not np.issubdtype(output.dtype, np.floating):
        return output
    axis = 1 if output.ndim >= 4 else output.ndim - 1
    if output.ndim < 2 or output.shape[axis] < 2:
        return np.empty(0, np.int64)
    return np.asarray(output.argmax(axis=axis))


def compare(
    float_model: Model,
    int8_model: Model,
    samples: Iterable[Sample],
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    on_sample: Callable[[int], None] | None = None,
    on_bad: OnBad | None = None,
) -> Quality:
    """Run both models on the same samples. Outputs are matched by position, named as in ``float_model``.

    ``on_sample`` is told how many samples are done, ``on_bad`` of those that ``float_model`` does not take:
    they are skipped.

    Raises:
        CalibrationError: a model does not load, or does not take a sample.
    """
    reference = open_session(float_model, providers=providers, threads=threads)
    actual = open_session(int8_model, providers=providers, threads=threads)
    tallies = {output.name: _Tally() for output in reference.get_outputs()}
    seen = 0
    for sample in samples:
        try:
            expected = _run(reference, sample)
        except CalibrationError as error:
            if on_bad is None:
                refuse(error)
            on_bad(error, sample.count)
            continue
        given = _run(actual, sample)
        for tally, one, other in zip(tallies.values(), expected, given, strict=True):
            tally.add(one, other)
        seen += sample.count
        if on_sample is not None:
            on_sample(seen)
    return Quality({name: tally.quality() for name, tally in tallies.items()}, seen)


def _run(session: ort.InferenceSession, sample: Sample) -> list[Any]:
    return run_batch(session, [output.name for output in session.get_outputs()], sample)
