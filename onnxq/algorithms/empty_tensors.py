"""Keep in float what reads tensors that are empty in every sample: nothing is known about their ranges.

Decoders are calibrated on prompts, with a cache of length 0; speech models have windows that are empty for
short inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

import onnx_ir as ir

from calibrators.errors import shorten
from calibrators.statistics import TensorStatistics
from onnxq.algorithms.autotune.derived_plan import without
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError
from onnxq.core.plan import GRAPH_OUTPUT, Group, QuantPlan
from onnxq.graph.nodes import name_of
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

_REASON = "tensor {!r} was empty in every sample, so its range is not known"


def float_where_empty(
    model: ir.Model, plan: QuantPlan, statistics: Mapping[str, TensorStatistics] | None, config: QuantConfig
) -> tuple[QuantPlan, QuantConfig, tuple[str, ...]]:
    """Plan again, without the nodes that would read always-empty tensors in integers.

    Args:
        model: the cleaned float model.
        plan: its plan, without parameters.
        statistics: the calibration statistics; None: ranges come from elsewhere.
        config: the options of the plan.

    Returns:
        The plan, the options that give it, and a warning that names the tensors; plan and options are those
        given if no tensor is empty.

    Raises:
        CalibrationError: nothing is left to quantize.
    """
    reasons: dict[str, str] = {}
    tensors: dict[str, None] = {}
    chosen, options = plan, config
    while empty := [group for group in chosen.groups.values() if _is_empty(group, statistics or {})]:
        tensors |= dict.fromkeys(name for group in empty for name in group.observed_tensors)
        more = _reasons(model, chosen, empty, reasons.keys())
        if not more:  # the error of the missing range names the tensor
            break
        reasons |= more
        options = without(config, reasons)
        chosen = make_plan(model, get_target(config.target), options)
    if not reasons:
        return plan, config, ()
    if not chosen.points:
        raise CalibrationError(
            f"empty in every sample: {shorten(list(tensors))}; without them there is nothing to quantize: "
            "give samples in which they hold something"
        )
    floats = {
        name: replace(node, reason=reasons.get(name, node.reason))
        for name, node in chosen.float_nodes.items()
    }
    warning = (
        f"EMPTY IN EVERY SAMPLE: {shorten(list(tensors))}. What reads them is kept in float: "
        f"{shorten(list(reasons))}. Give samples in which they hold something."
    )
    return replace(chosen, float_nodes=floats), options, (warning,)


def _reasons(model: ir.Model, plan: QuantPlan, empty: Iterable[Group], known: Set[str]) -> dict[str, str]:
    """Map further nodes to keep in float to the reason: the readers of each group, else its makers."""
    return {
        name: _REASON.format(group.observed_tensors[0])
        for group in empty
        for name in (_readers(plan, group) - known or _makers(model, group) - known)
    }


def _is_empty(group: Group, statistics: Mapping[str, TensorStatistics]) -> bool:
    """Whether none of the tensors that give a group's range ever held an element."""
    if group.constant or group.fixed is not None or not group.observed_tensors:
        return False
    seen = [statistics.get(name) for name in group.observed_tensors]
    return all(each is not None and not (each.count or each.nonfinite) for each in seen)


def _readers(plan: QuantPlan, group: Group) -> set[str]:
    """Name the nodes that read the group's tensors in integers."""
    return {point.consumer for point in plan.points_of(group.name)} - {GRAPH_OUTPUT}


def _makers(model: ir.Model, group: Group) -> set[str]:
    """Name the nodes that make the group's tensors: some targets quantize all that integer kernels give."""
    names = {*group.tensors, *group.observed_tensors}
    return {name_of(node) for node in model.graph for value in node.outputs if value.name in names}
