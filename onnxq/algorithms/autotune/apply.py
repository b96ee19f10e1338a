"""``--autotune``: keep the nodes of a draft in float that are faster in float on this machine.

With ``auto``, the default, a short look comes first: where integers are clearly faster, nothing is searched.
The search may then take as long again as the work before it.
"""

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
from onnxq.algorithms.autotune.tuner import EFFORTS, Tuning, is_fast, tune
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.mixed_precision.replan import Replanner
from onnxq.algorithms.mixed_precision.steps import keep_float
from onnxq.calibration.sample_split import in_batches
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.targets import TARGETS
from onnxq.targets.lookup import get_target

logger = logging.getLogger(__name__)


LEAST_SECONDS = 2.0
"""The time that an automatic search may take at least: with less, times are too noisy to decide."""

_RUNTIME, CPU_PROVIDER = "onnxruntime", "CPUExecutionProvider"


def check_measurable(config: QuantConfig) -> None:
    """Check before any work is done that ``--autotune full`` can measure on this machine.

    Raises:
        ConfigError: ``--autotune full`` for a target that ONNX Runtime does not run, or with another
            execution provider than the CPU.
    """
    if config.autotune != "full":
        return
    if not runs_here(config):
        able = ", ".join(name for name, target in TARGETS.items() if _RUNTIME in target.runtimes)
        raise ConfigError(
            f"autotune measures on this machine with ONNX Runtime, but target {config.target} is for another "
            f"runtime; autotune supports the targets {able}"
        )
    if config.providers != (CPU_PROVIDER,):
        raise ConfigError(f"autotune measures with {CPU_PROVIDER} only, got {', '.join(config.providers)}")


def tuned(
    draft: Draft, context: CorrectionContext, spent: float
) -> tuple[Draft, CorrectionContext, Tuning | None]:
    """Keep nodes in float where float is faster, unless ``--autotune off`` is given.

    Args:
        draft: the draft with all planned nodes in integers, with parameters.
        context: the samples and the options.
        spent: the time that the work took before, in seconds: an automatic search takes as long at most.

    Returns:
        The draft, the context with the options that reproduce it, and the result of the tuning (None if
        nothing was tuned).

    Raises:
        CalibrationError: ``--autotune full``, and ONNX Runtime refuses the model, or all samples.
    """
    config = context.config
    if config.autotune == "off" or not measurable(config) or not draft.plan.integer_nodes:
        return draft, context, None
    search = _search if config.autotune == "full" else _search_if_slow
    tuning = search(draft, context, spent)
    if tuning is None:
        return draft, context, None
    if context.samples.fit_samples:
        draft = Replanner(draft, context)(keep_float(tuning.floats))
    else:
        draft = replace(draft, plan=derive_plan(draft.reference, draft.plan, config, tuning.floats))
    return draft, context.with_config(without(config, tuning.floats)), tuning


def _search(draft: Draft, context: CorrectionContext, spent: float) -> Tuning:
    return tune(draft, _sample(draft, context), context, EFFORTS["full"])


def _search_if_slow(draft: Draft, context: CorrectionContext, spent: float) -> Tuning | None:
    """Search where integers are hardly faster than float; a failure is no reason to write no model.

    Whoever asks for weights of few bits or in blocks wants a small file, whatever its speed.
    """
    if draft.plan.is_compact:
        return None
    try:
        sample = _sample(draft, context)
        if is_fast(draft, sample, context):
            return None
        return tune(draft, sample, context, replace(EFFORTS["auto"], seconds=max(spent, LEAST_SECONDS)))
    except CalibrationError as error:
        logger.info("not autotuned: %s", error)
    except Exception as error:
        logger.warning("not autotuned, because it failed (%s: %s)", type(error).__name__, error)
        logger.debug("where autotuning failed", exc_info=True)
    return None


def _sample(draft: Draft, context: CorrectionContext) -> Sample:
    session = open_session(draft.reference, threads=context.config.threads)
    return timing_sample(session, draft.reference, context)


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


def measurable(config: QuantConfig) -> bool:
    """Whether the speed of the deployed model can be measured on this machine."""
    return runs_here(config) and config.providers == (CPU_PROVIDER,)


def runs_here(config: QuantConfig) -> bool:
    """Whether the target is for ONNX Runtime, so that this machine can run its models."""
    return _RUNTIME in get_target(config.target).runtimes
