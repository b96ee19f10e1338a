"""Equalize channels for dynamic quantization, with synthetic inputs if there is no data.

In transformers a few channels of a tensor are many times as large as the others, and its one scale must
cover them. They are the same ones for every input (Dettmers et al., LLM.int8(), 2022), so synthetic inputs
show them. `onnxq.algorithms.channels.equalize` equalizes them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from onnxq.algorithms.channels.equalize import equalized
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.corrections import Effect
from onnxq.algorithms.draft import Draft
from onnxq.core.plan import Group, QuantPlan, QuantPoint, QuantSpec
from onnxq.graph.nodes import name_of
from onnxq.graph.operators import SUMMED_AXIS
from onnxq.pipelines.dynamic.input_checks import is_computed
from onnxq.pipelines.dynamic.planning import rewrite
from onnxq.pipelines.dynamic.rewriter import Known
from onnxq.pipelines.dynamic.scheme import DynamicScheme, WeightForm

NAME = "equalize"
"""The name of the correction."""

DATA = QuantSpec(ir.DataType.UINT8, symmetric=False)
"""The number format of the output of DynamicQuantizeLinear."""


def rewrite_equalized(
    model: ir.Model, plan: QuantPlan, scheme: DynamicScheme, context: CorrectionContext
) -> tuple[ir.Model, ir.Model, tuple[Effect, ...]]:
    """Rewrite ``model`` with equalized channels if that helps, else without.

    Args:
        model: the float model, cleaned.
        plan: the nodes to quantize.
        scheme: the form of dynamic quantization for the target.
        context: samples to fit on, and held-out samples to decide on.

    Returns:
        The quantized model, the float model that was rewritten, equalized or as given, and the effect.

    Raises:
        CalibrationError: the model does not take a given sample.
    """
    known: Known = {}
    plain, points = rewrite(model, plan, scheme, known), tuple(_points(model, plan, scheme))
    wanted = NAME in scheme.config.correct and "none" not in scheme.config.correct
    if not (wanted and points and context.samples.has_held_out):
        return plain, model, ()
    started = time.perf_counter()
    before = context.evaluator.evaluate(plain)
    if not before.samples:
        return plain, model, ()
    context.progress("equalizing channels")
    found = equalized(Draft(model, model, _as_static(plan, points), {}), context)
    equal = None if found is None else rewrite(found, plan, scheme, known)
    after = None if equal is None else context.evaluator.evaluate(equal).noise
    helped = after is not None and after < before.noise
    effect = Effect(NAME, before.noise, after, time.perf_counter() - started, kept=helped)
    if equal is None or found is None or not helped:
        return plain, model, (effect,)
    return equal, found, (effect,)


def _points(model: ir.Model, plan: QuantPlan, scheme: DynamicScheme) -> Iterator[QuantPoint]:
    """Yield the quantized edges of MatMul and Gemm nodes with constant weights in the main graph."""
    if scheme.form is not WeightForm.INTEGERS:
        return
    for node in model.graph:
        if node.name in plan.integer_nodes and node.op_type in ("MatMul", "Gemm"):
            data, weight = node.inputs[:2]
            if is_computed(data) and not is_computed(weight):
                weights = replace(scheme.weight, axis=scheme.axis(1 - SUMMED_AXIS[node.op_type](node)))
                for index, (value, spec) in enumerate(((data, DATA), (weight, weights))):
                    name = name_of(value) if value is not None else ""
                    yield QuantPoint(name, name_of(node), index, spec, name)


def _as_static(plan: QuantPlan, points: tuple[QuantPoint, ...]) -> QuantPlan:
    """Add these points to ``plan``, as in a plan for static quantization."""
    groups = {
        point.group: Group(
            point.group,
            point.spec,
            (point.tensor,),
            observed_tensors=(point.tensor,) if point.spec is DATA else (),
            constant=point.spec is not DATA,
        )
        for point in points
    }
    return replace(plan, points=points, groups=groups)
