"""Measure how far a quantized model is from its float original, output by output."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from calibrators.collect import run_batch
from calibrators.data.bad_samples import OnBad, refuse
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import Model, open_session
from onnxq.verify.outputs.output_kinds import OutputKind, output_kinds
from onnxq.verify.outputs.tally import OutputQuality, Tally

__all__ = ["AccuracyEvaluator", "OutputQuality", "Quality", "outcome"]

KEPT_BYTES = 256 * 2**20
"""Bytes of float outputs to keep; for the samples beyond, the float model runs again in each evaluation."""


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


class AccuracyEvaluator:
    """Compares quantized models with the float model on a set of samples.

    The float model runs once per sample, and its outputs are kept as long as they are small.

    Attributes:
        float_model: the float model, or its path.
        kinds: how each of its outputs is compared, by name.
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
        self.kinds = output_kinds(float_model)
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
        tallies = {name: Tally(kind) for name, kind in self.kinds.items()}
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
    kinds: Mapping[str, OutputKind], pairs: Iterable[tuple[Sequence[Any], Sequence[Any]]], samples: int
) -> Quality:
    """Measure how close outputs are to the expected ones.

    Args:
        kinds: how each output is compared, by name.
        pairs: for each batch, the expected outputs and the actual ones.
        samples: the number of samples in all batches.
    """
    tallies = {name: Tally(kind) for name, kind in kinds.items()}
    for expected, given in pairs:
        for tally, one, other in zip(tallies.values(), expected, given, strict=True):
            tally.add(one, other)
    return _quality(tallies, samples)


def _quality(tallies: Mapping[str, Tally], samples: int) -> Quality:
    real = [tally for tally in tallies.values() if tally.signal]
    shares = zip(*([noise / tally.signal for noise in tally.noise] for tally in real), strict=False)
    return Quality(
        outputs={name: tally.quality() for name, tally in tallies.items()},
        samples=samples,
        each=tuple(sum(share) / len(real) for share in shares),
    )


def _run(session: ort.InferenceSession, sample: Sample) -> list[Any]:
    return run_batch(session, [output.name for output in session.get_outputs()], sample)
