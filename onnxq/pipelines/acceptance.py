"""Acceptance of a written static model before it gets its name: loads, accurate, in integers, faster."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calibrators.errors import CalibrationError, shorten
from calibrators.session import open_session
from onnxq.algorithms.autotune.apply import (
    CPU_PROVIDER,
    LEAST_TURNS,
    QUICK,
    RACE_SECONDS,
    RACE_TURNS,
    runs_here,
    timing_sample,
)
from onnxq.calibration.sample_split import Samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.plan import QuantPlan
from onnxq.graph.files import load
from onnxq.targets.lookup import get_target
from onnxq.verify.accuracy import AccuracyEvaluator, Quality
from onnxq.verify.checkers import ask_runtimes
from onnxq.verify.latency import Speed, significantly_faster, time_interleaved
from onnxq.verify.legality import LEGALITY, check
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Verdict

POOR_SQNR = 10.0
"""dB: below it the error holds more than a tenth of the power of the output itself."""


GOOD_SQNR = 20.0
"""dB: what is advised as a goal, an error of a hundredth of the power."""


SECONDS = {"auto": 60.0, "full": 3600.0, "off": 0.0}
"""How long a runtime may take to build the model, by `QuantConfig.verify`."""


VERIFIED_ON = 2
"""Samples that a runtime runs the model on."""


NAMED = 3
"""Broken rules that are named."""


MOSTLY_FLOAT = 0.9
"""Of the bytes of all weights: where more stay float, a user would not call the model quantized."""


@dataclass
class StaticAcceptance:
    """What the runtime says of a model; the answers stay here.

    Attributes:
        evaluator: knows the original, and the samples to judge by.
        plan: what was to become of it.
        config: for which target, and how much is to be verified.
        quality: against the original; None without samples.
        verdicts: what the target's rules and its runtimes say.
    """

    evaluator: AccuracyEvaluator
    plan: QuantPlan
    config: QuantConfig
    quality: Quality | None = None
    verdicts: tuple[Verdict, ...] = ()

    def run(self, draft: Path) -> None:
        """Load the model, compare it with the original, ask what becomes of it.

        Raises:
            CalibrationError: a model does not load, or does not take a sample.
            ModelError: the target does not take what was written, which is our mistake.
        """
        quality = self.evaluator.evaluate(draft)
        self.quality = quality if quality.samples else None
        if self.plan.integer_nodes:
            self.verdicts = tuple(self._verify(draft))

    def _verify(self, draft: Path) -> Iterator[Verdict]:
        subject = Subject(
            draft,
            load(draft),
            get_target(self.config.target),
            samples=self.evaluator.samples[:VERIFIED_ON],
            threads=self.config.threads,
            seconds=SECONDS[self.config.verify],
        )
        legal = check(subject)
        if legal.errors:
            raise ModelError(
                f"the model that was made breaks rules of {self.plan.target}, which is a bug in onnxq; "
                f"please report it: {'; '.join(map(str, legal.errors[:NAMED]))}"
            )
        yield legal
        if self.config.verify != "off":
            yield from ask_runtimes(subject)

    @property
    def unfused(self) -> tuple[str, ...]:
        """Planned nodes that a runtime of the target runs in float after all."""
        runtimes = (verdict for verdict in self.verdicts if verdict.runtime != LEGALITY)
        found = (finding.node for verdict in runtimes for finding in verdict.findings)
        return tuple(dict.fromkeys(name for name in found if name in self.plan.integer_nodes))


def float_weights(model: ir.Model, plan: QuantPlan) -> float:
    """The share, in bytes, of the real constants of the main graph that ``plan`` leaves float."""
    sizes = {
        name: value.const_value.nbytes
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    }
    quantized = {tensor for group in plan.groups.values() if group.constant for tensor in group.tensors}
    left = sum(size for name, size in sizes.items() if name not in quantized)
    return left / max(sum(sizes.values()), 1)


def static_warnings(samples: Samples, trial: StaticAcceptance, float_weights: float) -> Iterator[str]:
    """Why the result should not be trusted, or is not worth much."""
    if samples.synthetic:
        yield (
            "NO CALIBRATION DATA: ranges come from synthetic inputs and the accuracy is UNKNOWN. "
            "Give real samples with --data."
        )
    yield from samples.warnings
    advice = "Made-up inputs may not tell." if samples.synthetic else _advice(trial)
    yield from model_warnings(trial, float_weights, advice)


def _advice(trial: StaticAcceptance) -> str:
    """What brings outputs closer to the float model's."""
    goal = "a stricter --goal" if trial.config.goal else f"--goal 'sqnr>={GOOD_SQNR:.0f}'"
    ways = [f"{goal}, which widens weights or keeps nodes float until it holds"]
    if _has_few_bits(trial.plan) and not {"adaround", "none"} & set(trial.config.correct):
        names = " ".join(f"--correct {name}" for name in (*trial.config.correct, "adaround"))
        ways.append(f"{names}, which learns how weights of few bits are rounded")
    return f"Try {'; or '.join(ways)}. 'onnxq sensitivity' ranks what costs most, for --exclude."


def _has_few_bits(plan: QuantPlan) -> bool:
    """Whether weights have less than 8 bits."""
    return any(group.constant and group.spec.dtype.bitwidth < 8 for group in plan.groups.values())


def model_warnings(trial: StaticAcceptance, float_weights: float, advice: str) -> Iterator[str]:
    """The same, of what was written alone, wherever its ranges come from; ``advice`` is for poor outputs."""
    if trial.unfused:
        yield (
            f"planned for integers but run in float on this ONNX Runtime ({len(trial.unfused)} nodes): "
            f"{shorten(trial.unfused)}. The model is right, but slower than it could be."
        )
    if float_weights > MOSTLY_FLOAT:
        yield (
            f"{float_weights:.0%} of the weights stay float: expect little gain in size or speed. "
            "'onnxq inspect' tells why, node by node."
        )
    yield from output_warnings(trial.quality, advice)


def output_warnings(quality: Quality | None, advice: str) -> Iterator[str]:
    """The outputs that are not like the float model's, and what to do."""
    for name, output in (quality.outputs if quality else {}).items():
        if not output.finite:
            yield f"output {name!r} of the quantized model holds NaN or infinite numbers"
        elif not math.isnan(output.sqnr) and output.sqnr < POOR_SQNR:
            yield f"output {name!r} is far from the float model's: SQNR {output.sqnr:.1f} dB. {advice}"


logger = logging.getLogger(__name__)


@dataclass
class SpeedCheck:
    """Races the written model against its original; what came of it stays here.

    Attributes:
        original: the float model as the user has it.
        model: the float model, cleaned: it tells what samples must be like.
        samples: what to feed.
        config: the options.
        speed: None if nothing was timed: the target is run by another runtime, or there are no samples.
    """

    original: str | os.PathLike[str]
    model: ir.Model
    samples: Samples
    config: QuantConfig
    speed: Speed | None = None
    _slower: bool = False

    def run(self, draft: Path) -> None:
        """Time it."""
        known = bool(self.samples.given) or self.config.autotune
        if not known or not runs_here(self.config) or self.config.providers != (CPU_PROVIDER,):
            return
        sessions = [open_session(p, threads=self.config.threads, exact=False) for p in (self.original, draft)]
        try:
            sample = timing_sample(sessions[0], self.model, self.samples, self.config)
        except CalibrationError as error:  # the model is good, only its speed stays unknown
            logger.info("not timed: %s", error)
            return
        times = time_interleaved(sessions, sample, seconds=RACE_SECONDS, least=LEAST_TURNS, most=RACE_TURNS)
        self.speed = Speed.of(times)
        self._slower = significantly_faster([times], 0, 1)

    @property
    def warnings(self) -> Iterator[str]:
        """Why the model is not worth much, if so."""
        if self.speed is None or not self._slower or self.speed.float_seconds < QUICK:
            return
        advice = "" if self.config.autotune else " --autotune keeps float what is faster so."
        yield (
            f"SLOWER THAN FLOAT on this machine: {self.speed.int8_seconds * 1e3:.2f} ms a run instead of "
            f"{self.speed.float_seconds * 1e3:.2f} ms.{advice}"
        )
