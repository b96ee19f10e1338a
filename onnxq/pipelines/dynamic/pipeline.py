"""Dynamic quantization: weights in int8, ranges of activations computed at run time; no data is needed.

::

    prepare      clean the model, and choose the operators to quantize (planning.py)
    equalize     equalize large channels, if that helps (equalization.py)
    rewrite      one file per operator; dispatch.py lists them, scheme.py has the form for each target
    write        check, compare with the original (acceptance.py), then rename into place
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from functools import partial
from typing import NoReturn

import onnx_ir as ir

from calibrators.errors import CalibrationError
from onnxq.calibration.declared_shapes import with_ranks
from onnxq.calibration.sample_split import Data, Samples, open_samples, origin
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, ModelError
from onnxq.core.plan import QuantPlan
from onnxq.core.progress import Progress, silent
from onnxq.core.unused import Wanted, tell_unused
from onnxq.graph.files import load, write_validated, written_together
from onnxq.graph.half_precision.widen import stores_half
from onnxq.graph.passes import simplify
from onnxq.pipelines.dynamic.acceptance import (
    accept_dynamic,
    dynamic_warnings,
    make_dynamic_context,
)
from onnxq.pipelines.dynamic.equalization import rewrite_equalized
from onnxq.pipelines.dynamic.planning import plan_nodes
from onnxq.pipelines.dynamic.scheme import DynamicScheme, find_scheme
from onnxq.pipelines.preflight import (
    as_onnxq_errors,
    check_files,
    check_is_float,
    check_patterns,
)
from onnxq.pipelines.report.evidence.material import Material, gather_evidence
from onnxq.pipelines.report.report import Request
from onnxq.pipelines.result import QuantResult, conclude
from onnxq.targets.lookup import get_target

__all__ = ["prepare_dynamic", "quantize_dynamic"]

logger = logging.getLogger(__name__)

Path = str | os.PathLike[str]

SYNTHETIC_COUNT = 20
"""The number of synthetic samples, used without data. They are small, and a fifth of them is held out."""


def quantize_dynamic(
    model: Path,
    output: Path,
    config: QuantConfig | None = None,
    data: Data | None = None,
    progress: Progress = silent,
) -> QuantResult:
    """Quantize the weights of ``model`` and write it to ``output``, completely or not at all.

    Args:
        model: path of a float ONNX model.
        output: path of the model to write.
        config: the options, with or without ``mode="dynamic"``; defaults if None. ``include`` and ``exclude``
            select nodes by operator type and name.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches. They show which channels
            are large, and every fifth is held out to measure accuracy and speed on. Synthetic inputs if None.
        progress: called with the progress of the work.

    Raises:
        OnnxqError: the model cannot be quantized; the message says why, and ``output`` is left unchanged.
    """
    started = time.perf_counter()
    config = as_dynamic(config or QuantConfig())
    data = config.data if data is None else data
    tell_unused(Wanted(config, has_data=data is not None))
    check_files(model, output, data, config)
    with as_onnxq_errors(model), written_together():
        progress("reading the model")
        simple, plan, scheme = _prepare(model, config)
        samples = _open(simple, data, config)
        context = make_dynamic_context(model, simple, samples, config, progress)
        progress("quantizing weights")
        quantized, effects = rewrite_equalized(simple, plan, scheme, context)
        progress("writing and checking the model")
        check = partial(accept_dynamic, plan=plan, scheme=scheme, reference=simple, context=context)
        accepted = write_validated(with_ranks(quantized, simple, samples, config), output, check)
        return conclude(
            QuantResult(
                request=Request(os.fspath(model), os.fspath(output), origin(data), config),
                plan=plan,
                make_table=_no_table,
                quality=accepted.quality,
                verdicts=accepted.verdicts,
                judged_on=samples.eval_source if accepted.quality else "nothing",
                skipped=samples.skipped,
                warnings=tuple(dynamic_warnings(accepted, samples)),
                speed=accepted.speed,
                here=accepted.here,
                int8_bytes=accepted.size,
                constant_bytes=accepted.constants,
                corrections=effects,
                evidence=gather_evidence(
                    Material(
                        reference=simple,
                        quantized=quantized,
                        plan=plan,
                        evaluator=context.evaluator,
                        config=config,
                        rescaled=any(effect.kept for effect in effects),
                    )
                ),
            ),
            started,
        )


def prepare_dynamic(model: Path, config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    """Clean the model and choose the nodes to quantize.

    Raises:
        ModelError: the model cannot be read, is quantized already, or has nothing to quantize.
        TargetError: the target has no dynamic quantization.
    """
    simple, plan, _ = _prepare(model, config)
    return simple, plan


def as_dynamic(config: QuantConfig) -> QuantConfig:
    """Set ``mode="dynamic"`` in ``config``.

    Raises:
        ConfigError: ``config`` has options for static quantization only.
    """
    return config.changed(mode="dynamic")


def _prepare(model: Path, config: QuantConfig) -> tuple[ir.Model, QuantPlan, DynamicScheme]:
    scheme = find_scheme(get_target(config.target), config)
    original = load(model)
    check_is_float(original, model)
    simple = simplify(original)
    check_patterns(simple, config)
    plan = plan_nodes(simple, scheme)
    if not plan.integer_nodes and not plan.weight_only_nodes:
        reasons = list(dict.fromkeys(node.reason for node in plan.float_nodes.values()))
        raise ModelError(
            f"{model}: nothing to quantize dynamically for target {scheme.target.name}: "
            f"{'; '.join(reasons[:3]) or 'no operator has weights'}."
        )
    return simple, replace(plan, half_constants=stores_half(original)), scheme


def _open(model: ir.Model, data: Data | None, config: QuantConfig) -> Samples:
    """Open the samples. Without data there may be none: nothing that is written depends on a run.

    Raises:
        CalibrationError: given data cannot be read or does not fit the model.
    """
    try:
        return open_samples(model, data, config, default_count=SYNTHETIC_COUNT)
    except CalibrationError as error:
        if data is not None:
            raise
        logger.info("no synthetic inputs: %s", error)
        return Samples((), 0, synthetic=True)


def _no_table() -> NoReturn:
    raise ConfigError("there is no calibration table: in dynamic mode ranges are computed at run time")
