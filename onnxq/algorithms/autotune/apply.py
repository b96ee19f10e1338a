"""``--autotune``: a draft with the nodes kept in float that are faster so on this machine."""

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


def tuned(draft: Draft, context: CorrectionContext) -> tuple[Draft, CorrectionContext, Tuning | None]:
    """Keep nodes in float where float is faster, if ``--autotune`` asks for it.

    Returns:
        the draft, the context whose options plan it so again, and how it was found.

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
    """``draft`` with the reasons of ``tuning`` in its plan."""
    if tuning is None:
        return draft
    told = {name: _explained(name, node, tuning) for name, node in draft.plan.float_nodes.items()}
    return replace(draft, plan=replace(draft.plan, float_nodes=told))


def _explained(name: str, node: FloatNode, tuning: Tuning) -> FloatNode:
    return replace(node, reason=tuning.floats[name]) if name in tuning.floats else node


def timing_sample(session: ort.InferenceSession, reference: ir.Model, context: CorrectionContext) -> Sample:
    """The batch that models are timed on: the first that ``session`` takes, synthetic if there is none.

    Args:
        session: runs the float model.
        reference: the float model, cleaned: its inputs say how samples are batched.
        context: samples and options.

    Raises:
        CalibrationError: ``session`` takes none.
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
    raise refusal or CalibrationError("there is no sample to take times with")


def _synthetic(reference: ir.Model, config: QuantConfig) -> Iterator[Sample]:
    made = synthetic_samples(reference, input_specs(reference), config.batch_size, config.seed)
    yield from in_batches(made, reference, config)


def runs_here(config: QuantConfig) -> bool:
    """Whether ONNX Runtime, which this machine has, is the runtime of the target."""
    return _RUNTIME in get_target(config.target).runtimes
