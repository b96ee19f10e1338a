"""Convert a model that has Q/DQ already, for example from training elsewhere, for a target: `requantize`.

Its Q and DQ are removed, and the target's plan is made from the float model. Every tensor that had a scale
keeps it: exactly if the target has that number format, else with the same range. Only the other tensors that
the target quantizes are calibrated. No corrections are applied: training has compensated for the errors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from calibrators.errors import shorten
from calibrators.statistics import Statistics
from onnxq.algorithms.float32_nodes import chosen_remainder
from onnxq.calibration.declared_shapes import with_ranks
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics, from_table
from onnxq.calibration.run import gather
from onnxq.calibration.sample_split import Data, Samples, in_batches, open_samples, origin
from onnxq.calibration.saturation import before, saturating, unsaturated, with_clips
from onnxq.calibration.tables.sources import of_plan
from onnxq.calibration.tables.table import Encoding, Table, on_grid
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError
from onnxq.core.numerics import dequantize, grid_of, quantize, spread
from onnxq.core.plan import Group, QuantParams, QuantPlan, QuantSpec
from onnxq.core.progress import Progress, silent
from onnxq.core.unused import REQUANTIZE, Wanted, refuse, tell_unused
from onnxq.graph.files import load, write_validated, written_together
from onnxq.graph.half_precision.narrow import Narrowing
from onnxq.graph.half_precision.simulate import runnable
from onnxq.graph.nodes import constant_value, is_op, name_of
from onnxq.graph.operators import MOVING
from onnxq.graph.qdq.insert_qdq import as_written
from onnxq.graph.qdq.strip_qdq import RecordedQParams, StrippedModel, strip
from onnxq.graph.walks import upstream
from onnxq.pipelines.acceptance import (
    Acceptance,
    accept,
    model_warnings,
    refuse_doubts,
    saturation_warnings,
    verify_static,
    with_quality_here,
)
from onnxq.pipelines.preflight import as_onnxq_errors, check_files, quantized_node
from onnxq.pipelines.prepare import prepare_loaded
from onnxq.pipelines.report.evidence.material import Material, gather_evidence
from onnxq.pipelines.report.report import Request
from onnxq.pipelines.result import QuantResult, conclude
from onnxq.verify.accuracy import AccuracyEvaluator

ON_GRID = 1e-3
"""The greatest distance, in steps, of weights that count as lying on a grid."""


@dataclass(frozen=True, kw_only=True)
class Requantized(QuantResult):
    """The result of `requantize`; ``quality`` and ``float_bytes`` refer to the given model.

    Attributes:
        kept: groups whose scales come from the given model.
        calibrated: groups of activations without a scale in the given model.
    """

    from_float: ClassVar[bool] = False

    kept: tuple[str, ...] = ()
    calibrated: tuple[str, ...] = ()


def requantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
) -> Requantized:
    """Convert a model with Q/DQ for ``config.target``; tensors keep the scales that they have.

    Args:
        model: path of a model with pairs of QuantizeLinear and DequantizeLinear.
        output: path of the model to write. It is written completely or not at all.
        data: as for `quantize_static`: to calibrate tensors without a scale, and to compare both models.
        config: the options; no corrections are applied.
        progress: called with the progress of the work.

    Raises:
        ConfigError: an option does not apply here: a goal, tables, corrections, dynamic mode.
        ModelError: the model has no Q/DQ, or has integer operators that are no Q/DQ pairs.
        CalibrationError: the target quantizes more tensors than the model, and there is no data.
    """
    started = time.perf_counter()
    options = _checked(config or QuantConfig())
    data = options.data if data is None else data
    tell_unused(Wanted(options, has_data=data is not None))
    check_files(model, output, data, options)
    with as_onnxq_errors(model), written_together():
        progress("reading the model")
        stripped = _stripped(model)
        first = _stage(stripped.model, os.fspath(model), options, stripped)
        samples = open_samples(first.model, data, options)
        stage, statistics = _calibrated(first, stripped, samples, options, progress)
        simple = stage.model
        source = from_statistics(statistics, calibrator(options))
        plan = compute_qparams(simple, stage.plan, source, stage.known)
        progress("writing and checking the model")
        request = Request(os.fspath(model), os.fspath(output), origin(data), options)
        narrowing = _narrowing(simple, plan, samples, options)
        written = with_ranks(as_written(simple, plan, narrowing), simple, samples, options)
        evaluator = AccuracyEvaluator(
            runnable(request.model),
            samples.eval_samples or list(samples),
            providers=options.providers,
            threads=options.threads,
        )
        accepted = _accepted(written, plan, samples, request, evaluator)
        result = Requantized(
            request=request,
            plan=plan,
            make_table=lambda: of_plan(plan, simple, stripped.model),
            quality=accepted.quality,
            verdicts=accepted.verdicts,
            judged_on=samples.eval_source,
            skipped=samples.skipped,
            warnings=(
                *_warnings(stripped, samples),
                *(() if samples.synthetic else saturation_warnings(accepted)),
                *model_warnings(accepted, plan, simple, "Keep sensitive nodes in float with --exclude."),
            ),
            speed=None,
            here=accepted.here,
            int8_bytes=accepted.size,
            statistics=statistics or None,
            narrowing=narrowing,
            evidence=gather_evidence(Material(simple, written, plan, evaluator, options, narrowing)),
            kept=tuple(stage.known),
            calibrated=stage.missing,
        )
        return conclude(result, started)


def _narrowing(simple: ir.Model, plan: QuantPlan, samples: Samples, config: QuantConfig) -> Narrowing | None:
    """Decide in which types to write what stays in float."""
    batches = () if samples.synthetic else list(in_batches(samples.fit_samples, simple, config))
    return chosen_remainder(simple, plan, batches, config)


def _accepted(
    written: ir.Model, plan: QuantPlan, samples: Samples, request: Request, evaluator: AccuracyEvaluator
) -> Acceptance:
    """Write the model and compare it with the given one."""
    config = request.config
    verify = partial(verify_static, plan=plan, config=config, evaluator=evaluator)

    def check(draft: Path) -> Acceptance:
        accepted = accept(draft, evaluator, verify)
        if config.strict:
            refuse_doubts(accepted, synthetic=samples.synthetic)
        return with_quality_here(accepted, draft, plan, evaluator)

    return write_validated(written, request.output, check)


def _checked(config: QuantConfig) -> QuantConfig:
    where = "a model that keeps its scales takes no {}: leave them out, or quantize the float model"
    refuse(config, REQUANTIZE, where)
    return config.model_copy(update={"correct": ("none",)})


def _stripped(model: str | os.PathLike[str]) -> StrippedModel:
    stripped = strip(load(model))
    if (node := quantized_node(stripped.model)) is not None:
        raise ModelError(
            f"{model}: node {node.name!r} is a {node.op_type}: only pairs of QuantizeLinear and "
            "DequantizeLinear, and operators like QLinearConv, have scales that another target can keep. "
            "Give the float model to 'onnxq quantize'"
        )
    if not stripped.activations and not stripped.weights:
        raise ModelError(f"{model}: has no QuantizeLinear and DequantizeLinear: use 'onnxq quantize'")
    return stripped


def _warnings(stripped: StrippedModel, samples: Samples) -> Iterator[str]:
    if samples.synthetic:
        yield (
            "NO DATA: both models were compared on synthetic inputs only, and the accuracy is UNKNOWN. Give "
            "real samples with --data."
        )
    if stripped.conflicting:
        yield f"quantized in several different ways, the first one is kept: {shorten(stripped.conflicting)}"
    yield from samples.warnings


def _known(simple: ir.Model, plan: QuantPlan, stripped: StrippedModel) -> dict[str, QuantParams]:
    """Collect the parameters of every group that has some in the given model.

    A range of floating-point numbers says little about one of integers, and the other way round: then there
    are none.
    """
    known = dict(_known_weights(simple, plan, stripped.weights))
    values = ir.convenience.create_value_mapping(simple.graph)
    computed = [group for group in plan.groups.values() if not group.constant and group.fixed is None]
    for group in computed:
        recorded = {n: _recorded(values[n], stripped.activations) for n in _names(group) if n in values}
        found = {name: each for name, each in recorded.items() if each is not None and _alike(each, group)}
        table = Table({name: _encoding(each, group.spec.symmetric) for name, each in found.items()})
        if found and not any(encoding.per_channel for encoding in table.activations.values()):
            known[group.name] = from_table(table, replace(plan, groups={group.name: group}))(group)
    return known


def _alike(recorded: RecordedQParams, group: Group) -> bool:
    """Whether both are integers, or both floating-point numbers."""
    return recorded.spec.is_floating == group.spec.is_floating


def _names(group: Group) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*group.observed_tensors, *group.tensors)))


def _recorded(value: ir.Value, activations: Mapping[str, RecordedQParams]) -> RecordedQParams | None:
    """Find the parameters of ``value``, or of a tensor from which its values were only moved."""
    sources = upstream(value, lambda node: is_op(node, *MOVING))
    return next((activations[name] for name in map(name_of, sources) if name in activations), None)


def _encoding(recorded: RecordedQParams, symmetric: bool) -> Encoding:
    """Make the encoding that the table of a target would have, with its symmetry."""
    try:
        return on_grid(recorded.spec, recorded.scale, recorded.zero_point, symmetric=symmetric)
    except ValueError as error:
        raise ModelError(f"a QuantizeLinear of the model has {error}") from error


def _known_weights(
    simple: ir.Model, plan: QuantPlan, recorded: Mapping[str, RecordedQParams]
) -> Iterator[tuple[str, QuantParams]]:
    """Yield the parameters of weights that still lie on their grid: cleaning may have folded factors in.

    It does not matter which integers they were: numbers of 4 bits lie on a grid of 8 bits too.
    """
    for group in plan.groups.values():
        name = group.tensors[0]
        if not group.constant or name not in recorded or recorded[name].block_size != group.spec.block_size:
            continue
        values = constant_value(simple.graph.initializers[name])
        if values is None or not _alike(recorded[name], group):
            continue
        for params in _same_scale(recorded[name], group.spec):
            each = _by_channel(params, group, values.shape)
            if each is not None and _lies_on(values.astype(np.float32), each, group):
                yield group.name, each
                break


def _same_scale(recorded: RecordedQParams, spec: QuantSpec) -> Iterator[QuantParams]:
    """Yield the parameters with the recorded scale that the number format ``spec`` can have."""
    if spec.power_of_two and (np.frexp(recorded.scale)[0] != 0.5).any():
        return
    (qmin, qmax), middle = spec.limits, np.full(recorded.scale.shape, grid_of(spec).middle)
    shifted = recorded.zero_point - recorded.spec.limits[0] + qmin
    for zero in (middle,) if spec.symmetric else (shifted, middle):
        if ((zero >= qmin) & (zero <= qmax)).all():
            yield QuantParams(recorded.scale, zero.astype(spec.dtype.numpy()))


def _by_channel(params: QuantParams, group: Group, shape: tuple[int, ...]) -> QuantParams | None:
    """Repeat a per-tensor scale for each channel if necessary; None: only per-channel scales are known."""
    axis = group.spec.axis
    if axis is None or params.scale.ndim:
        return params if (axis is None) == (params.scale.ndim == 0) else None
    size = shape[axis]
    return QuantParams(np.full(size, params.scale), np.full(size, params.zero_point))


def _lies_on(values: np.ndarray, params: QuantParams, group: Group) -> bool:
    try:
        again = dequantize(quantize(values, params, group.spec), params, group.spec)
    except (ValueError, IndexError):  # the scales are those of another axis
        return False
    return bool((np.abs(again - values) <= ON_GRID * spread(params.scale, group.spec, values.shape)).all())


@dataclass(frozen=True)
class _Stage:
    """A float model, its plan for the target, and the parameters that it has already, by group name."""

    name: str
    model: ir.Model
    plan: QuantPlan
    known: dict[str, QuantParams]

    @property
    def missing(self) -> tuple[str, ...]:
        """The groups that must be calibrated."""
        groups = self.plan.groups.values()
        return tuple(g.name for g in groups if g.observed_tensors and g.name not in self.known)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that must be observed."""
        return tuple(tensor for name in self.missing for tensor in self.plan.groups[name].observed_tensors)


def _stage(model: ir.Model, name: str, config: QuantConfig, stripped: StrippedModel) -> _Stage:
    simple, plan = prepare_loaded(model, name, config)
    return _Stage(name, simple, plan, _known(simple, plan, stripped))


def _calibrated(
    first: _Stage, stripped: StrippedModel, samples: Samples, config: QuantConfig, progress: Progress
) -> tuple[_Stage, Statistics]:
    """Calibrate what has no scale, and add the Clips that saturation needs (see `saturation`)."""
    if samples.synthetic:  # nobody knows whether a Clip does more than rounding
        _require_data(first)
        return first, Statistics({}, 0)
    recorded = stripped.activations
    doubtful = unsaturated(first.model, first.plan, first.known, recorded)
    clipped = partial(_clipped, first, config=config, stripped=stripped)
    stage = clipped(doubtful)
    there = ir.convenience.create_value_mapping(stage.model.graph)
    wanted = (*first.tensors, *stage.tensors, *map(before, doubtful))
    tensors = dict.fromkeys(name for name in wanted if name in there)  # cleaning may have joined two Clips
    statistics = gather(stage.model, tensors, samples, config, progress) if tensors else Statistics({}, 0)
    return clipped(saturating(statistics, doubtful, recorded)), statistics


def _clipped(first: _Stage, tensors: Collection[str], config: QuantConfig, stripped: StrippedModel) -> _Stage:
    if not tensors:
        return first
    return _stage(with_clips(first.model, tensors, stripped.activations), first.name, config, stripped)


def _require_data(stage: _Stage) -> None:
    """Refuse a model of which groups have no scale.

    Raises:
        CalibrationError: there are such groups.
    """
    if stage.missing:
        raise CalibrationError(
            f"the target {stage.plan.target} quantizes {len(stage.missing)} tensors that the model has no "
            f"scale for: {shorten(stage.missing)}. Give calibration data."
        )
