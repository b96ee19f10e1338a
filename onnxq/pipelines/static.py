"""Static quantization, step by step: from a float model to a checked int8 model."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import onnx_ir as ir

from calibrators.statistics import Statistics
from onnxq.algorithms.autotune.apply import check_measurable, tuned
from onnxq.algorithms.autotune.tuner import Tuning
from onnxq.algorithms.context import CorrectionContext, channel_means, make_context
from onnxq.algorithms.corrections import Effect, check_correctable, corrected
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.empty_tensors import float_where_empty
from onnxq.algorithms.float32_nodes import chosen_remainder
from onnxq.algorithms.layers.matrices import channel_axes
from onnxq.algorithms.mixed_precision.noisy_nodes import Rescue, hold
from onnxq.algorithms.mixed_precision.search import Search, chosen_goal, reach
from onnxq.calibration import tables
from onnxq.calibration.declared_shapes import with_ranks
from onnxq.calibration.qparams import QParamSource, calibrator, compute_qparams, from_statistics, from_table
from onnxq.calibration.run import carries_inputs, gather, statistics_warnings
from onnxq.calibration.sample_split import Data, Samples, open_samples, origin
from onnxq.calibration.tables.sources import check_plan, of_plan
from onnxq.calibration.tables.table import Table
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, ModelError
from onnxq.core.floor import Floor
from onnxq.core.goal import Goal
from onnxq.core.parallel import Executor
from onnxq.core.plan import QuantPlan
from onnxq.core.progress import Progress, silent
from onnxq.core.unused import Wanted, refuse, tell_unused
from onnxq.graph.files import external_files, load, write_made, write_validated, written_together
from onnxq.graph.qdq.insert_qdq import as_written
from onnxq.pipelines.acceptance import accept_static, output_warnings, static_warnings
from onnxq.pipelines.preflight import as_onnxq_errors, check_files
from onnxq.pipelines.prepare import prepare
from onnxq.pipelines.report.evidence.material import Material, gather_evidence
from onnxq.pipelines.report.report import Request
from onnxq.pipelines.result import QuantResult, conclude
from onnxq.verify.metrics.choice import find_metric, settled


def quantize_static(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
    goal: Goal | None = None,
    executor: Executor | None = None,
) -> QuantResult:
    """Quantize ``model`` with ranges from ``data`` and write it to ``output``, completely or not at all.

    Args:
        model: path of a float ONNX model.
        output: path of the int8 model to write.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches.
        config: the options; defaults if None.
        progress: called with the progress of the work.
        goal: the accuracy that the model must reach, as ``config.goal``; its measure may be the user's own
            function.
        executor: workers that rank quantization points for the goal; None: this process does.

    Raises:
        OnnxqError: the model cannot be quantized; the message says why, and ``output`` is left unchanged.
    """
    started = time.perf_counter()
    config = config or QuantConfig()
    if config.mode != "static":
        raise ConfigError(f"mode {config.mode}: call onnxq.quantize_dynamic or onnxq.quantize_weights")
    data = config.data if data is None else data
    if data is not None and config.from_table is not None:
        raise ConfigError("calibration data and a table (data, from_table) both give the ranges: use one")
    with as_onnxq_errors():
        given = data if data is not None or not carries_inputs(config) else config.from_table
    goal, config = settled(chosen_goal(goal, given, config), config)
    tell_unused(Wanted(config, has_data=given is not None, has_goal=goal is not None))
    check_files(model, output, data, config)
    check_measurable(config)
    check_correctable(config)
    with as_onnxq_errors(model):
        progress("reading the model")
        simple, plan = prepare(model, config)
        find_metric(config.metric, simple)  # before long work: there may be no such metric
        check_plan(plan, config.tables)
        samples = open_samples(simple, data, config)
        source, statistics, warnings = _source(simple, plan, samples, config, progress)
        if statistics is not None and statistics.inputs is not None:
            samples = Samples.of_kept(statistics.inputs, statistics.samples)
    calibrated = Calibrated(
        os.fspath(model),
        simple,
        plan,
        samples,
        source,
        statistics,
        warnings,
        origin(given),
        started,
        executor,
    )
    return quantize_calibrated(calibrated, output, config, progress, goal)


@dataclass(frozen=True)
class Calibrated:
    """A calibrated float model: the input of the second half of a quantization.

    Attributes:
        path: path of the float model.
        reference: the same model, cleaned.
        plan: its plan, without parameters.
        samples: samples to fit corrections on, and held-out samples to evaluate on.
        source: the source of the ranges.
        statistics: the calibration statistics; None if a table gives the ranges.
        warnings: warnings about the ranges.
        origin: the source of the samples, in words.
        started: start of the work, by `time.perf_counter`, in seconds.
        executor: workers that rank quantization points for a goal; None: this process does.
    """

    path: str
    reference: ir.Model
    plan: QuantPlan
    samples: Samples
    source: QParamSource
    statistics: Statistics | None
    warnings: tuple[str, ...]
    origin: str
    started: float = field(default_factory=time.perf_counter)
    executor: Executor | None = None


def quantize_calibrated(
    calibrated: Calibrated,
    output: str | os.PathLike[str],
    config: QuantConfig,
    progress: Progress,
    goal: Goal | None,
) -> QuantResult:
    """Run the second half of a quantization: from ranges to the written model.

    Args:
        calibrated: the float model, its plan and its ranges.
        output: path of the int8 model to write.
        config: the options.
        progress: called with the progress of the work.
        goal: the accuracy that the model must reach, if any.

    Raises:
        OnnxqError: as `quantize_static`.
    """
    with as_onnxq_errors(calibrated.path), written_together():
        progress("choosing ranges")
        improved = _improved(calibrated, config, progress, goal)
        progress("writing and checking the model")
        return conclude(_written(calibrated, improved, output), calibrated.started)


@dataclass(frozen=True)
class _Improved:
    """What the algorithms made of a calibrated model.

    Attributes:
        config: the options, which exclude what reads always-empty tensors.
        draft: the draft to write.
        context: the samples, and the options that exclude the nodes of ``tuning`` too.
        table: makes the table of the ranges before corrections.
        effects: the effect of each correction.
        search: how the goal was reached; None if there was none.
        rescue: the nodes that are widened or in float for the sake of the floor; None if it held.
        tuning: the nodes that are kept in float because float is faster; None if nothing was tuned.
        warnings: warnings about the draft.
    """

    config: QuantConfig
    draft: Draft
    context: CorrectionContext
    table: Callable[[], Table]
    effects: tuple[Effect, ...]
    search: Search | None
    rescue: Rescue | None
    tuning: Tuning | None
    warnings: tuple[str, ...]


def _improved(
    calibrated: Calibrated, config: QuantConfig, progress: Progress, goal: Goal | None
) -> _Improved:
    """Compute the parameters, and run the requested algorithms."""
    spent = time.perf_counter() - calibrated.started
    model, reference, statistics = calibrated.path, calibrated.reference, calibrated.statistics
    plan, config, empty = float_where_empty(reference, calibrated.plan, statistics, config)
    plan = compute_qparams(reference, plan, calibrated.source)
    context = make_context(model, reference, calibrated.samples, config, progress)
    context = replace(context, executor=calibrated.executor)
    context.check_metric()
    axes, every = channel_axes(reference, calibrated.plan), channel_means(statistics or {})
    means = {name: mean for name, mean in every.items() if name in axes}  # statistics may serve all targets
    draft = Draft(reference, reference, plan, means, statistics or {})
    draft, context, tuning = tuned(draft, context, time.perf_counter() - calibrated.started)
    table = cache(partial(_table, model, reference, draft.plan))
    done = corrected(draft, context, spent)
    draft, search = reach(done.draft, goal, context)
    floor, passed = _floor(config, goal), time.perf_counter() - calibrated.started
    draft, rescue = hold(draft, floor, context, passed, done.quality)
    reasons = {name: node.reason for name, node in plan.float_nodes.items()}
    draft = draft.explained(
        {**(rescue.floats if rescue else {}), **(tuning.floats if tuning else {}), **reasons}
    )
    warnings = (*empty, *(search.warnings if search else ()), *(tuning.warnings if tuning else ()))
    warnings = (*warnings, *_doubts(rescue, config))
    return _Improved(config, draft, context, table, done.effects, search, rescue, tuning, warnings)


def _doubts(rescue: Rescue | None, config: QuantConfig) -> Iterator[str]:
    """Yield the warnings that nothing is quantized for the sake of the floor, if so.

    Raises:
        ModelError: the same, with ``--strict``.
    """
    if rescue is None or rescue.refused is None:
        return
    found = list(output_warnings(rescue.refused, "")) or [f"INACCURATE: SQNR {rescue.refused.sqnr:.1f} dB"]
    doubts = [text.rstrip(". ") for text in found]
    if config.strict:
        raise ModelError(f"--strict, so nothing is written: {'; '.join(doubts)}")
    none = "reaches" if rescue.finished else "was found in time (--time-limit) that reaches"
    for doubt in doubts:
        yield (
            f"{doubt}. No model with integers {none} {rescue.floor.sqnr:g} dB, so the output is the cleaned "
            "float model, with nothing quantized. --floor 0 writes the int8 model all the same."
        )


def _floor(config: QuantConfig, goal: Goal | None) -> Floor | None:
    """Return the floor; None if there is none, or a goal, which the user has chosen."""
    return Floor(config.floor) if config.floor and goal is None else None


def _written(calibrated: Calibrated, improved: _Improved, output: str | os.PathLike[str]) -> QuantResult:
    """Write and check the model and its tables."""
    reference, samples = calibrated.reference, calibrated.samples
    draft, context, config = improved.draft, improved.context, improved.config
    check = partial(accept_static, plan=draft.plan, reference=reference, context=context)
    if config.tables:
        tables.write(tables.encode_all(improved.table(), config.tables))
    plan = replace(draft.plan, half_constants=calibrated.plan.half_constants)
    batches = () if samples.synthetic else context.fit
    narrowing = chosen_remainder(draft.model, plan, batches, config)
    written = with_ranks(as_written(draft.model, plan, narrowing), reference, samples, config)
    is_plain = not (plan.points or plan.half_constants or narrowing)
    if is_plain and _is_smaller(calibrated.path, written):
        accepted = write_made(output, partial(shutil.copyfile, calibrated.path), check)
    else:
        accepted = write_validated(written, output, check)
    return QuantResult(
        request=Request(calibrated.path, os.fspath(output), calibrated.origin, config),
        plan=draft.plan,
        make_table=improved.table,
        quality=accepted.quality,
        verdicts=accepted.verdicts,
        judged_on=samples.eval_source,
        skipped=samples.skipped,
        warnings=(
            *calibrated.warnings,
            *improved.warnings,
            *static_warnings(accepted, draft.plan, reference, context),
        ),
        speed=accepted.speed,
        here=accepted.here,
        int8_bytes=accepted.size,
        constant_bytes=accepted.constants,
        statistics=calibrated.statistics,
        corrections=improved.effects,
        search=improved.search,
        rescue=improved.rescue,
        tuning=improved.tuning,
        narrowing=narrowing,
        evidence=gather_evidence(
            Material(draft.reference, written, draft.plan, context.evaluator, context.config, narrowing)
        ),
    )


def _is_smaller(path: str | os.PathLike[str], model: ir.Model) -> bool:
    """Whether the file at ``path``, without external data, is smaller than that of ``model`` would be."""
    return not external_files(load(path)) and Path(path).stat().st_size < ir.to_proto(model).ByteSize()


def _table(model: str | os.PathLike[str], simple: ir.Model, plan: QuantPlan) -> Table:
    return of_plan(plan, simple, load(model))


def _source(
    model: ir.Model, plan: QuantPlan, samples: Samples, config: QuantConfig, progress: Progress
) -> tuple[QParamSource, Statistics | None, tuple[str, ...]]:
    """Get the source of the ranges, the statistics if it has some, and warnings about them."""
    if config.from_table is not None and not tables.is_statistics(config.from_table):
        where = f"{config.from_table} is a table with ranges, so no {{}} chooses them: leave it out"
        refuse(config, ("method", "percentile"), where)
        return from_table(tables.read(config.from_table), plan), None, ()
    statistics, warnings = _statistics(model, plan, samples, config, progress)
    return from_statistics(statistics, calibrator(config)), statistics, warnings


def _statistics(
    model: ir.Model, plan: QuantPlan, samples: Samples, config: QuantConfig, progress: Progress
) -> tuple[Statistics, tuple[str, ...]]:
    """Collect or load the statistics, with warnings about them."""
    if config.from_table is None:
        return gather(model, observed(model, plan), samples, config, progress), ()
    statistics = Statistics.load(config.from_table)
    return statistics, tuple(statistics_warnings(statistics, model))


def observed(model: ir.Model, plan: QuantPlan) -> Mapping[str, int | None]:
    """Map the tensors to collect statistics of to the channel axis whose means are needed; None: no means."""
    return {**dict.fromkeys(plan.observed), **channel_axes(model, plan)}
