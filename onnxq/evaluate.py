"""How far a quantized model is from its float original, output by output, and how much faster."""

from __future__ import annotations

import math
import os
import statistics as stats
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.collect import run_batch
from calibrators.samples import Sample
from calibrators.session import open_session
from onnxq.errors import ModelError
from onnxq.numerics import decibels

Array = NDArray[np.generic]
Model = ir.Model | str | os.PathLike[str]


@dataclass(frozen=True)
class OutputQuality:
    """One output.

    Attributes:
        sqnr: 10 log10(signal power / power of the difference), in dB, over all samples and all values
            that are finite in the float model; NaN if there are none.
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

    def quality(self) -> OutputQuality:
        return OutputQuality(
            sqnr=decibels(self.signal, self.noise) if self.reals else math.nan,
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


def check_alike(float_model: ir.Model, int8_model: ir.Model) -> None:
    """Check that two models can be compared: inputs are matched by name, outputs by position.

    Raises:
        ModelError: they differ in number, name, type or size.
    """
    ours, theirs = ({v.name: v for v in _inputs(model)} for model in (float_model, int8_model))
    if ours.keys() != theirs.keys() or not all(_fits(ours[name], theirs[name]) for name in ours):
        raise _different("inputs", ours.values(), theirs.values())
    one, other = float_model.graph.outputs, int8_model.graph.outputs
    if len(one) != len(other) or not all(map(_fits, one, other)):
        raise _different("outputs", one, other)


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _fits(one: ir.Value, other: ir.Value) -> bool:
    """The same type, and no two known sizes that differ."""
    if one.dtype != other.dtype:
        return False
    if one.shape is None or other.shape is None:
        return True
    sizes = zip(one.shape, other.shape, strict=False)
    known = [(a, b) for a, b in sizes if isinstance(a, int) and isinstance(b, int)]
    return len(one.shape) == len(other.shape) and all(a == b for a, b in known)


def _different(kind: str, ours: Iterable[ir.Value], theirs: Iterable[ir.Value]) -> ModelError:
    first, second = (
        ", ".join(f"'{v.name}' ({v.dtype} {v.shape})" for v in values) or "none" for values in (ours, theirs)
    )
    return ModelError(f"the models have different {kind} and cannot be compared: {first}; {second}")


def compare(
    float_model: Model,
    int8_model: Model,
    samples: Iterable[Sample],
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    on_sample: Callable[[int], None] | None = None,
) -> Quality:
    """Run both models on the same samples. Outputs are matched by position, named as in ``float_model``.

    ``on_sample`` is told how many samples are done.

    Raises:
        CalibrationError: a model does not load, or does not take a sample.
    """
    reference = open_session(float_model, providers=providers, threads=threads)
    actual = open_session(int8_model, providers=providers, threads=threads)
    tallies = {output.name: _Tally() for output in reference.get_outputs()}
    seen = 0
    for sample in samples:
        expected, given = _run(reference, sample), _run(actual, sample)
        for tally, one, other in zip(tallies.values(), expected, given, strict=True):
            tally.add(one, other)
        seen += sample.count
        if on_sample is not None:
            on_sample(seen)
    return Quality({name: tally.quality() for name, tally in tallies.items()}, seen)


def _run(session: ort.InferenceSession, sample: Sample) -> list[Any]:
    return run_batch(session, [output.name for output in session.get_outputs()], sample.name, sample.feeds)


@dataclass(frozen=True)
class Speed:
    """Median seconds a run of each model, and the median of their ratio pair by pair."""

    float_seconds: float
    int8_seconds: float
    ratio: float


def race(
    float_model: Model, int8_model: Model, sample: Sample, *, threads: int = 1, seconds: float = 2.0
) -> Speed:
    """Time both models in turns on one sample, so that what else the machine does hits both alike."""
    sessions = [open_session(model, threads=threads) for model in (float_model, int8_model)]
    times: list[tuple[float, float]] = []
    _pair(sessions, sample)
    _pair(sessions, sample)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        times.append(_pair(sessions, sample))
    return Speed(
        stats.median(f for f, _ in times),
        stats.median(q for _, q in times),
        stats.median(f / q for f, q in times),
    )


def _pair(sessions: Sequence[ort.InferenceSession], sample: Sample) -> tuple[float, float]:
    marks = [time.perf_counter()]
    for session in sessions:
        session.run(None, dict(sample.feeds))
        marks.append(time.perf_counter())
    return marks[1] - marks[0], marks[2] - marks[1]
