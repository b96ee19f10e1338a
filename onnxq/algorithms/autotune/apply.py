"""``--autotune``: a draft with the nodes kept in float that are faster so on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import onnx_ir as ir
import onnxruntime as ort

from calibrators.collect import run_batch
from calibrators.data.samples import Sample, input_specs
from calibrators.data.synthetic import synthetic_samples
from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.algorithms.autotune.derived_plan import derive_plan, without
from onnxq.algorithms.autotune.tuner import Tuning, tune
from onnxq.algorithms.context import make_context
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.mixed_precision.replan import Replanner
from onnxq.algorithms.mixed_precision.steps import keep_float
from onnxq.calibration.sample_split import Samples, in_batches
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.plan import FloatNode
from onnxq.core.progress import Progress
from onnxq.targets import TARGETS
from onnxq.targets.lookup import get_target
from onnxq.verify.accuracy import AccuracyEvaluator

logger = logging.getLogger(__name__)


_RUNTIME, CPU_PROVIDER = "onnxruntime", "CPUExecutionProvider"


RACE_SECONDS, RACE_TURNS = 0.5, 50
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
    if not runs_here(config):
        able = ", ".join(name for name, target in TARGETS.items() if _RUNTIME in target.runtimes)
        raise ConfigError(
            f"autotune measures on this machine with ONNX Runtime, which is not what target {config.target} "
            f"runs on; targets that it can be used with: {able}"
        )
    if config.providers != (CPU_PROVIDER,):
        raise ConfigError(f"autotune measures with {CPU_PROVIDER} only, got {', '.join(config.providers)}")


def tuned(
    original: str | os.PathLike[str],
    draft: Draft,
    samples: Samples,
    evaluator: AccuracyEvaluator,
    config: QuantConfig,
    progress: Progress,
) -> tuple[Draft, QuantConfig, Tuning | None]:
    """``draft`` with nodes kept float that are faster so, the options to plan it again, and how it was found.

    Raises:
        CalibrationError: ONNX Runtime refuses the model, or all samples.
    """
    if not config.autotune:
        return draft, config, None
    session = open_session(draft.reference, threads=config.threads)
    sample = timing_sample(session, draft.reference, samples, config)
    del session
    tuning = tune(original, draft.reference, draft.plan, sample, config, progress)
    if samples.fit_samples:
        context = make_context(draft.reference, samples, evaluator, config, progress)
        draft = Replanner(draft, context, config)(keep_float(tuning.floats))
    else:
        draft = replace(draft, plan=derive_plan(draft.reference, draft.plan, config, tuning.floats))
    return draft, without(config, tuning.floats), tuning


def explained(draft: Draft, tuning: Tuning | None) -> Draft:
    """``draft`` with the reasons of ``tuning`` in its plan."""
    if tuning is None:
        return draft
    told = {name: _explained(name, node, tuning) for name, node in draft.plan.float_nodes.items()}
    return replace(draft, plan=replace(draft.plan, float_nodes=told))


def _explained(name: str, node: FloatNode, tuning: Tuning) -> FloatNode:
    return replace(node, reason=tuning.floats[name]) if name in tuning.floats else node


def timing_sample(
    session: ort.InferenceSession, model: ir.Model, samples: Samples, config: QuantConfig
) -> Sample:
    """What to feed when times are taken: the first batch that ``session`` takes, made up if there is none.

    Raises:
        CalibrationError: it takes none.
    """
    given = in_batches(chain(samples.fit_samples, samples.eval_samples), model, config)
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


def runs_here(config: QuantConfig) -> bool:
    """Whether ONNX Runtime, which this machine has, is the runtime of the target."""
    return _RUNTIME in get_target(config.target).runtimes
