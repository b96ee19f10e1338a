"""Small models with drafts and workbenches for them: tools that tests of algorithms share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from graphs import parse

from calibrators.collect import collect
from calibrators.data.samples import Sample
from onnxq.algorithms.context import CorrectionContext, channel_means
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.matrices import channel_axes
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.core.config import QuantConfig
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.planner.number_formats import find_formats
from onnxq.targets.lookup import get_target
from onnxq.verify.accuracy import AccuracyEvaluator

CHAIN = """g (float[N,4,6,6] x) => (float[N,5] y)
<float[8,4,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[8,8,1,1] w3, float[8,5] v>
{
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)  r = Relu (a)
    c = Conv <pads = [1,1,1,1]> (r, w2, b2)  s = Add (c, r)  t = Relu (s)
    d = Conv (t, w3)  p = GlobalAveragePool (d)  f = Flatten (p)
    y = MatMul (f, v)
}"""


def samples(count: int, shape: tuple[int, ...], seed: int = 0, **more: np.ndarray) -> list[Sample]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, *shape)).astype(np.float32)
    return [Sample(f"sample {n}", {"x": x, **more}) for n, x in enumerate(values)]


def bench_for(
    text: str = CHAIN, feeds=None, count: int = 12, held: int = 6, bits: int | None = None, **options
) -> tuple[Draft, CorrectionContext]:
    """A model quantized to nearest, and a workbench with some samples to fit on and some held out.

    Inputs besides ``x`` get the same ``feeds`` in each. Weights use so many ``bits``, if given.
    """
    config = QuantConfig(**{"method": "minmax", **options})
    model = simplify(parse(text), find_formats(get_target(config.target), config).opset)
    inputs = model.graph.inputs[0]
    shape = tuple(size if isinstance(size, int) else 1 for size in inputs.shape)
    fit = samples(count, shape, **(feeds or {}))
    evaluator = AccuracyEvaluator(model, samples(held, shape, seed=1, **(feeds or {})), threads=1)
    plan = make_plan(model, get_target(config.target), config)
    plan = plan if bits is None else with_bits(plan, bits)
    axes = channel_axes(model, plan)
    statistics = collect(model, [*plan.observed, *axes], fit, channels=axes, threads=1)
    plan = compute_qparams(model, plan, from_statistics(statistics, calibrator(config)))
    context = CorrectionContext(fit, evaluator, config=config.model_copy(update={"threads": 1}))
    return Draft(model, model, plan, channel_means(statistics), statistics), context


def with_bits(plan, bits):
    """The plan with fewer levels for weights."""

    def few(spec):
        return replace(spec, reduce_bits=8 - bits)

    constant = {name for name, group in plan.groups.items() if group.constant}
    return replace(
        plan,
        groups={n: replace(g, spec=few(g.spec)) if n in constant else g for n, g in plan.groups.items()},
        points=tuple(replace(p, spec=few(p.spec)) if p.group in constant else p for p in plan.points),
    )


def nudged(draft: Draft) -> Draft:
    """``draft`` with weights and biases as a correction might have left them: a little off the exact ones."""
    initializers = draft.model.graph.initializers
    names = [name for name in initializers if name.startswith(("w", "b"))]
    changed = {name: initializers[name].const_value.numpy() * np.float32(1.01) for name in names}
    return draft.with_constants(changed)


def damped(second, share=0.01):
    """``second [G, K, K]`` with a share of the mean of its diagonal on it: positive definite."""
    size = second.shape[-1]
    mean = np.trace(second, axis1=1, axis2=2) / size
    return second + np.eye(size) * np.where(mean > 0, share * mean, 1.0)[:, None, None]


def normal_samples(shape, count=24, seed=0):
    rng = np.random.default_rng(seed)
    return [Sample(str(i), {"x": rng.standard_normal(shape).astype(np.float32)}) for i in range(count)]


def bench_of(
    model: ir.Model, shape, target: str = "onnxruntime", **options
) -> tuple[Draft, CorrectionContext]:
    return bench_on(model, normal_samples(shape), normal_samples(shape, 8, seed=1), target=target, **options)


def bench_on(model: ir.Model, fit, held, **options) -> tuple[Draft, CorrectionContext]:
    """The same with samples of one's own, to fit on and held out."""
    config = QuantConfig(method="minmax", threads=1, **options)
    context = CorrectionContext(fit, AccuracyEvaluator(model, held, threads=1), config=config)
    return context.recalibrate(model), context
