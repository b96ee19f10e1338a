"""Clean the model and make its plan: the steps before every calibration."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from onnxq.algorithms.layers.matrices import channel_axes
from onnxq.calibration.qparams import check_weights
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError, TargetError
from onnxq.core.plan import QuantPlan
from onnxq.graph.files import load
from onnxq.graph.half_precision.widen import computes_in_half, stores_half
from onnxq.graph.passes import simplify
from onnxq.graph.passes.opset import OPSETS
from onnxq.pipelines.dynamic.planning import plan_nodes
from onnxq.pipelines.dynamic.scheme import find_scheme
from onnxq.pipelines.preflight import check_is_float, check_patterns
from onnxq.planner import make_plan
from onnxq.planner.number_formats import Formats, find_formats, float_type
from onnxq.targets import TARGETS
from onnxq.targets.lookup import get_target
from onnxq.targets.target import Target

ModelPath = str | os.PathLike[str]


def prepare(model: ModelPath, config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    """Clean the model and make its plan, still without parameters.

    Raises:
        ModelError: the model cannot be read, is quantized already, or has nothing to quantize.
        TargetError: the target is unknown or does not take the requested types.
    """
    original = load(model)
    check_is_float(original, model)
    return prepare_loaded(original, os.fspath(model), config)


def prepare_loaded(original: ir.Model, name: str, config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    """Do the same as `prepare` for a model in memory.

    Args:
        original: the float model.
        name: its name in error messages.
        config: the options.

    Raises:
        ModelError: as `prepare`.
        TargetError: as `prepare`.
    """
    target = get_target(config.target)
    simple = simplify(original, _opset(original, target, config))
    check_patterns(simple, config)
    plan = make_plan(simple, target, config)
    if not plan.points:
        raise _nothing(name, [plan], _dynamic_advice(simple, name, target, config))
    check_weights(simple, plan)
    return simple, replace(plan, half_constants=stores_half(original))


def _opset(original: ir.Model, target: Target, config: QuantConfig) -> int:
    """Return the lowest opset that has all number formats of the written model."""
    half = next((dtype for dtype in OPSETS if computes_in_half(original, (dtype,))), ir.DataType.FLOAT)
    written = float_type(target, config, half)
    return max(find_formats(target, config).opset, OPSETS.get(written, 0))


def _dynamic_advice(simple: ir.Model, name: str, target: Target, config: QuantConfig) -> str:
    """Give the command that quantizes the model dynamically; empty if that finds nothing either."""
    try:
        scheme = find_scheme(target, QuantConfig(include=config.include, exclude=config.exclude))
    except TargetError:
        return ""
    plan = plan_nodes(simple, scheme)
    found = Counter(plan.integer_nodes.values())
    if not found:
        return ""
    counts = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
    given = f" --target {config.target}" if "target" in config.model_fields_set else ""
    command = f"onnxq quantize {shlex.quote(name)} OUTPUT --mode dynamic{given}"
    return f" Dynamic quantization, which observes no tensors, finds {counts}: {command}"


def prepare_for_all(
    model: ModelPath, config: QuantConfig, *, means: bool = False
) -> tuple[ir.Model, dict[str, int | None]]:
    """Clean the model, and find the tensors whose statistics the targets need.

    These are all targets, or only ``config.target`` if it is set.

    Args:
        model: path of the float model.
        config: the options.
        means: also find the tensors whose channel means corrections need.

    Returns:
        The model, and each tensor with the axis of its channel means; None: no means, or targets that
        disagree on the axis.

    Raises:
        ModelError: as `prepare`, if it applies to every target.
        TargetError: as `prepare`, if it applies to every target.
    """
    given = "target" in config.model_fields_set
    targets = [get_target(config.target)] if given else list(TARGETS.values())
    able = _able(targets, config)
    simple = _clean(model, config, min(formats.opset for formats in able.values()))  # nothing is written
    plans = [make_plan(simple, get_target(name), config) for name in able]
    if not any(plan.points for plan in plans):
        raise _nothing(model, plans)
    found: dict[str, int | None] = {tensor: None for plan in plans for tensor in plan.observed}
    axes: dict[str, set[int]] = {}
    for plan in plans if means else ():
        for tensor, axis in channel_axes(simple, plan).items():
            axes.setdefault(tensor, set()).add(axis)
    return simple, found | {name: each.pop() if len(each) == 1 else None for name, each in axes.items()}


def _able(targets: Iterable[Target], config: QuantConfig) -> dict[str, Formats]:
    """Find the targets that take the requested types: name -> number formats.

    Raises:
        TargetError: no target takes them.
    """
    able: dict[str, Formats] = {}
    refusal: TargetError | None = None
    for target in targets:
        try:
            able[target.name] = find_formats(target, config)
        except TargetError as error:  # another target may take them
            refusal = error
    if refusal is not None and not able:
        raise refusal
    return able


def _clean(model: ModelPath, config: QuantConfig, opset: int) -> ir.Model:
    original = load(model)
    check_is_float(original, model)
    simple = simplify(original, opset)
    check_patterns(simple, config)
    return simple


def _nothing(model: ModelPath, plans: list[QuantPlan], advice: str = "") -> ModelError:
    reasons = list(dict.fromkeys(node.reason for plan in plans for node in plan.float_nodes.values()))
    targets = ", ".join(plan.target for plan in plans)
    return ModelError(
        f"{model}: nothing to quantize for target {targets}: "
        f"{'; '.join(reasons[:3]) or 'no node computes float numbers'}.{advice}"
    )
