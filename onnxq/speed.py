"""Whether integers pay on this machine: `--autotune`, and the last look at the written model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from calibrators.collect import run_batch
from calibrators.errors import CalibrationError
from calibrators.samples import Sample, input_specs
from calibrators.session import open_session
from calibrators.synthetic import synthetic_samples
from onnxq.algorithms import Draft
from onnxq.algorithms.ladder import floated
from onnxq.algorithms.variants import Variants
from onnxq.autotune import Tuning, tune
from onnxq.autotune.contest import clearly_faster
from onnxq.autotune.tentative import tentative, without
from onnxq.config import QuantConfig
from onnxq.correction import workbench
from onnxq.errors import ConfigError
from onnxq.evaluate import Judge
from onnxq.plan import FloatNode
from onnxq.progress import Progress
from onnxq.race import Speed, in_turns
from onnxq.samples import Samples, in_batches
from onnxq.targets import TARGETS, get_target

logger = logging.getLogger(__name__)

_RUNTIME, _PROVIDER = "onnxruntime", "CPUExecutionProvider"

SECONDS, TURNS = 0.5, 50
"""How long the written model races against its original, and how often at most."""

LEAST_TURNS = 3

QUICK = 1e-4
"""Seconds: where a run takes less, most of it is the call, whatever the model."""


def check_measurable(config: QuantConfig) -> None:
    """Find out before the work whether times can be taken as ``config`` asks for.

    Raises:
        ConfigError: `--autotune` for a target that is not run by ONNX Runtime, or with a provider.
    """
    if not config.autotune:
        return
    if not _runs_here(config):
        able = ", ".join(name for name, target in TARGETS.items() if _RUNTIME in target.runtimes)
        raise ConfigError(
            f"autotune measures on this machine with ONNX Runtime, which is not what target {config.target} "
            f"runs on; targets that it can be used with: {able}"
        )
    if config.providers != (_PROVIDER,):
        raise ConfigError(f"autotune measures with {_PROVIDER} only, got {', '.join(config.providers)}")


def tuned(
    original: str | os.PathLike[str],
    draft: Draft,
    samples: Samples,
    judge: Judge,
    config: QuantConfig,
    progress: Progress,
) -> tuple[Draft, QuantConfig, Tuning | None]:
    """``draft`` with nodes kept float that are faster so, the options to plan it again, and how it was found.

    Raises:
        CalibrationError: ONNX Runtime refuses the model, or all samples.
    """
    if not config.autotune:
        return draft, config, None
    session = open_session(draft.exact, threads=config.threads)
    sample = timing_sample(session, draft.exact, samples, config)
    del session
    tuning = tune(original, draft.exact, draft.plan, sample, config, progress)
    if samples.to_fit:
        bench = workbench(draft.exact, samples, judge, config, progress)
        draft = Variants(draft, bench, config)(floated(tuning.floats))
    else:
        draft = replace(draft, plan=tentative(draft.exact, draft.plan, config, tuning.floats))
    return draft, without(config, tuning.floats), tuning


def explained(draft: Draft, tuning: Tuning | None) -> Draft:
    """``draft`` with the reasons of ``tuning`` in its plan."""
    if tuning is None:
        return draft
    told = {name: _explained(name, node, tuning) for name, node in draft.plan.floats.items()}
    return replace(draft, plan=replace(draft.plan, floats=told))


def _explained(name: str, node: FloatNode, tuning: Tuning) -> FloatNode:
    return replace(node, reason=tuning.floats[name]) if name in tuning.floats else node


@dataclass
class LastLook:
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
        if not known or not _runs_here(self.config) or self.config.providers != (_PROVIDER,):
            return
        sessions = [open_session(p, threads=self.config.threads, exact=False) for p in (self.original, draft)]
        try:
            sample = timing_sample(sessions[0], self.model, self.samples, self.config)
        except CalibrationError as error:  # the model is good, only its speed stays unknown
            logger.info("not timed: %s", error)
            return
        times = in_turns(sessions, sample, seconds=SECONDS, least=LEAST_TURNS, most=TURNS)
        self.speed = Speed.of(times)
        self._slower = clearly_faster([times], 0, 1)

    @property
    def doubts(self) -> Iterator[str]:
        """Why the model is not worth much, if so."""
        if self.speed is None or not self._slower or self.speed.float_seconds < QUICK:
            return
        advice = "" if self.config.autotune else " --autotune keeps float what is faster so."
        yield (
            f"SLOWER THAN FLOAT on this machine: {self.speed.int8_seconds * 1e3:.2f} ms a run instead of "
            f"{self.speed.float_seconds * 1e3:.2f} ms.{advice}"
        )


def timing_sample(
    session: ort.InferenceSession, model: ir.Model, samples: Samples, config: QuantConfig
) -> Sample:
    """What to feed when times are taken: the first batch that ``session`` takes, made up if there is none.

    Raises:
        CalibrationError: it takes none.
    """
    given = in_batches(chain(samples.to_fit, samples.to_judge), model, config)
    refusal: CalibrationError | None = None
    for batch in given if samples.given else _made_up(model, config):
        try:
            run_batch(session, [session.get_outputs()[0].name], batch)
        except CalibrationError as error:
            refusal = error
        else:
            return batch
    raise refusal or CalibrationError("there is no sample to take times with")


def _made_up(model: ir.Model, config: QuantConfig) -> Iterator[Sample]:
    inputs = input_specs(model)
    yield from in_batches(synthetic_samples(model, inputs, config.batch_size, config.seed), model, config)


def _runs_here(config: QuantConfig) -> bool:
    return _RUNTIME in get_target(config.target).runtimes
