"""``--autotune``: keep the nodes of a draft in float that are faster in float on this machine."""

from __future__ import annotations

import logging
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
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.mixed_precision.replan import Replanner
from onnxq.algorithms.mixed_precision.steps import keep_float
from onnxq.calibration.sample_split import in_batches
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.plan import FloatNode
from onnxq.targets import TARGETS
from onnxq.targets.lookup import get_target

logger = logging.getLogger(__name__)


_RUNTIME, CPU_PROVIDER = "onnxruntime", "CPUExecutionProvider"


def check_measurable(config: QuantConfig) -> None:
    """Check before any work is done that ``--autotune`` can measure on this machine.

    Raises:
        ConfigError: ``--autotune`` for a target that ONNX Runtime does not run, or with another execution
            provider than the CPU.
    """
    if not config.autotune:
        return
    if not runs_here(config):
        able = ", ".join(name for name, target in TARGETS.items() if _RUNTIME in target.runtimes)
        raise ConfigError(
            f"autotune measures on this machine with ONNX Runtime, but target {config.target} is for another "
            f"runtime; autotune supports the targets {able}"
        )
    if config.providers != (CPU_PROVIDER,):
        raise ConfigError(f"autotune measures with {CPU_PROVIDER} only, got {', '.join(config.providers)}")


def tuned(draft: Draft, context: CorrectionContext) -> tuple[Draft, CorrectionContext, Tuning | None]:
    """Keep nodes in float where float is faster, if ``--autotune`` is given.

    Returns:
        The draft, the context with the options that reproduce it, and the result of the tuning (None without
        ``--autotune``).

    Raises:
        CalibrationError: ONNX Runtime refuses the model, or all samples.
    """
    config = context.config
    if not config.autotune:
        return draft, context, None
    session = open_session(draft.reference, threads=config.threads)
    sample = timing_sample(session, draft.reference, context)
    del session
    tuning = tune(draft, sample, context)
    if context.samples.fit_samples:
        draft = Replanner(draft, context)(keep_float(tuning.floats))
    else:
        draft = replace(draft, plan=derive_plan(draft.reference, draft.plan, config, tuning.floats))
    return draft, context.with_config(without(config, tuning.floats)), tuning


def explained(draft: Draft, tuning: Tuning | None) -> Draft:
    """Return ``draft`` with the reasons of ``tuning`` for the float nodes in its plan."""
    if tuning is None:
        return draft
    told = {name: _explained(name, node, tuning) for name, node in draft.plan.float_nodes.items()}
    return replace(draft, plan=replace(draft.plan, float_nodes=told))


def _explained(name: str, node: FloatNode, tuning: Tuning) -> FloatNode:
    return replace(node, reason=tuning.floats[name]) if name in tuning.floats else node


def timing_sample(session: ort.InferenceSession, reference: ir.Model, context: CorrectionContext) -> Sample:
    """Return the batch that models are timed on: the first one that ``session`` accepts.

    It consists of synthetic inputs if no samples were given.

    Args:
        session: a session of the float model.
        reference: the cleaned float model; its inputs determine how samples are batched.
        context: samples and options.

    Raises:
        CalibrationError: ``session`` accepts no batch.
    """
    samples, config = context.samples, context.config
    given = in_batches(chain(samples.fit_samples, samples.eval_samples), reference, config)
    refusal: CalibrationError | None = None
    for batch in given if samples.given else _synthetic(reference, config):
        try:
            run_batch(session, [session.get_outputs()[0].name], batch)
        except CalibrationError as error:
            refusal = error
        else:
            return batch
    raise refusal or CalibrationError("there is no sample to time the models on")


def _synthetic(reference: ir.Model, config: QuantConfig) -> Iterator[Sample]:
    made = synthetic_samples(reference, input_specs(reference), config.batch_size, config.seed)
    yield from in_batches(made, reference, config)


def runs_here(config: QuantConfig) -> bool:
    """Whether the target is for ONNX Runtime, so that this machine can run its models."""
    return _RUNTIME in get_target(config.target).runtimes
