"""Derive a plan with some nodes in float; all its ranges follow from the known ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from glob import escape

import onnx_ir as ir

from onnxq.calibration.qparams import compute_qparams
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError
from onnxq.core.numerics import params_from_range
from onnxq.core.overrides import written
from onnxq.core.plan import Group, QuantParams, QuantPlan
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target


def without(config: QuantConfig, nodes: Collection[str]) -> QuantConfig:
    """Return ``config`` with ``nodes`` excluded as well."""
    return config.model_copy(update={"exclude": (*config.exclude, *map(escape, sorted(nodes)))})


def with_activations(config: QuantConfig, types: Mapping[str, str]) -> QuantConfig:
    """Return ``config`` with overrides that give nodes, by name, activations of these types as well."""
    more = (written(escape(name), {"activation": dtype}) for name, dtype in types.items())
    return config.model_copy(update={"override": (*config.override, *more)})


def derive_plan(model: ir.Model, plan: QuantPlan, config: QuantConfig, nodes: Collection[str]) -> QuantPlan:
    """Return the plan of a model with some nodes in float.

    A tensor that shared its parameters with others keeps their common range.

    Args:
        model: the cleaned float model.
        plan: the plan with parameters, with no nodes kept in float for speed.
        config: the options that it was planned with.
        nodes: the names of the nodes to keep in float.

    Raises:
        CalibrationError: the range of a tensor that was not quantized before is not known.
    """
    if not nodes:
        return plan
    changed = make_plan(model, get_target(config.target), without(config, nodes))
    known = {name: plan.params[name] for name, group in changed.groups.items() if plan.has_range_of(group)}
    new = {name: group for name, group in changed.groups.items() if name not in known}
    part = compute_qparams(model, replace(changed, groups=new, biases=()), partial(_inherited, plan))
    return changed.with_params({**known, **part.params})


def _inherited(plan: QuantPlan, group: Group) -> QuantParams:
    """Compute parameters for the union of the ranges of all groups of ``plan`` with tensors of ``group``."""
    names = {*group.observed_tensors, *group.tensors}
    known = [old for old in plan.groups.values() if not old.constant and not names.isdisjoint(old.tensors)]
    if not known:
        raise CalibrationError(f"the range of tensor {group.name!r} is not known: calibrate with data")
    ranges = [_range(plan.params[old.name], old) for old in known]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return params_from_range(low, high, group.spec, group.bounds)


def _range(params: QuantParams, group: Group) -> tuple[float, float]:
    """Return the smallest and the largest real value of the grid."""
    low, high = (float((end - int(params.zero_point)) * params.scale) for end in group.spec.limits)
    return low, high
