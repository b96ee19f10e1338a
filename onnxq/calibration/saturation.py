"""Keep the saturation of a QuantizeLinear where the new target's plan has none.

ONNX Runtime's quantizer also drops a Clip(-1, 2) if the range of the QuantizeLinear behind it ends
there. Where the new plan quantizes that tensor on a grid with these ends, it saturates as before. Where it
leaves the tensor in float, or on a symmetric grid, a Clip does it:

    Conv → QuantizeLinear → DequantizeLinear → Add   ->   Conv → Clip → Add

A Clip takes time, and may part nodes that the runtime fuses. So it is left out where it changes the samples
less than rounding to the integers of the range does: there it only cut the tails that calibration cuts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from calibrators.methods.mse import Density, squared_errors
from calibrators.statistics import Statistics
from onnxq.core.numerics import grid_of
from onnxq.core.plan import GRAPH_OUTPUT, QuantParams, QuantPlan, QuantSpec
from onnxq.graph.nodes import is_op, name_of
from onnxq.graph.qdq.implied_clips import BEFORE_CLIP, clip_for_all
from onnxq.graph.qdq.strip_qdq import RecordedQParams

Recorded = Mapping[str, RecordedQParams]


def unsaturated(
    model: ir.Model, plan: QuantPlan, known: Mapping[str, QuantParams], recorded: Recorded
) -> tuple[str, ...]:
    """Name the computed tensors that had a scale, but that are read in float now, or on a wider grid.

    Args:
        model: the cleaned model, without Q and DQ.
        plan: its plan.
        known: the parameters that groups of the plan have from the given model.
        recorded: the parameters that tensors have in the given model.
    """
    quantized = {
        (point.tensor, point.consumer)
        for point in plan.points
        if (own := recorded.get(point.tensor)) is not None
        and not _is_wider(known.get(point.group), point.spec, own)
    }
    return tuple(
        name
        for node in model.graph
        for value in node.outputs
        if (name := name_of(value)) in recorded
        and recorded[name].scale.ndim == 0
        and not is_op(node, "Relu", "Clip")
        and any((name, reader) not in quantized for reader in _readers(value))
    )


def _is_wider(params: QuantParams | None, spec: QuantSpec, recorded: RecordedQParams) -> bool:
    """Whether a grid goes further than the recorded one by more than one step; so does an unknown one."""
    if params is None:
        return True
    step, zero = float(params.scale.max()), float(params.zero_point.max())
    low, high = ((end - zero) * step for end in spec.limits)
    return recorded.ends[0] - low > step or high - recorded.ends[1] > step


def _readers(value: ir.Value) -> set[str]:
    readers = {name_of(use.node) for use in value.uses()}
    return readers | {GRAPH_OUTPUT} if value.is_graph_output() else readers


def with_clips(model: ir.Model, tensors: Collection[str], recorded: Recorded) -> ir.Model:
    """Copy the model and clip these tensors to the ranges that they had."""
    copy = model.clone()
    for node in list(copy.graph):
        for value in node.outputs:
            if name_of(value) in tensors:
                clip_for_all(copy, value, recorded[name_of(value)].ends)
    return copy


def saturating(statistics: Statistics, tensors: Collection[str], recorded: Recorded) -> tuple[str, ...]:
    """Name those of ``tensors`` that clipping changes by more than rounding does.

    Args:
        statistics: the statistics of the tensors before their Clips, see `before`.
        tensors: the tensors.
        recorded: the parameters that they had.
    """
    return tuple(name for name in tensors if _saturates(statistics, before(name), recorded[name]))


def before(tensor: str) -> str:
    """Return the name that a tensor has before its Clip."""
    return f"{tensor}{BEFORE_CLIP}"


def _saturates(statistics: Statistics, name: str, recorded: RecordedQParams) -> bool:
    if name not in statistics:  # it has been folded, and nothing is known
        return True
    if not statistics[name].histogram.counts.any():
        return False
    low, high = (np.array([end]) for end in recorded.ends)
    density, grid = Density.of(statistics[name]), grid_of(recorded.spec)
    rounding, both = (squared_errors(density, grid, low, high, clipping).item() for clipping in (0.0, 1.0))
    return bool(both - rounding > rounding)
