"""Ranges by another method where the outputs gain by it."""

from dataclasses import replace

import numpy as np
import pytest
from benches import bench_for

from calibrators.methods import CALIBRATORS
from onnxq.algorithms.activation_ranges import choose_ranges
from onnxq.calibration.qparams import compute_qparams, from_statistics
from onnxq.core.plan import QuantParams

SATURATED = """g (float[N,64] x) => (float[N,16] y) <float[64,32] w1, float[32,16] w2>
{ a = MatMul (x, w1)  third = Constant <value_float = 0.3> ()  b = Mul (a, third)  e = Exp (b)
  m = MatMul (e, w2)  y = Sigmoid (m) }"""
"""A few values are much larger than the others, but the outputs do not tell them from large ones."""


@pytest.fixture(scope="module")
def bench():
    return bench_for(method="auto")


def ranges_by(draft, method):
    """The parameters that another method gives all activations."""
    source = from_statistics(draft.statistics, CALIBRATORS[method])
    return compute_qparams(draft.reference, draft.plan, source).params


def spoiled(draft, names):
    """With ranges of activations that are far too wide."""
    params = {
        name: QuantParams(16 * one.scale, one.zero_point) if name in names else one
        for name, one in draft.plan.params.items()
    }
    return replace(draft, plan=draft.plan.with_params(params))


def activations(draft):
    return [name for name, group in draft.plan.groups.items() if group.observed_tensors]


def test_ranges_that_do_harm_are_replaced(bench):
    draft, context = bench
    bad = spoiled(draft, activations(draft))
    better = choose_ranges(bad, context)
    seen = context.on_fit(16)
    assert seen.error(better) < seen.error(bad) / 10
    known = [ranges_by(draft, method) for method in ("mse", "minmax")]
    for name in activations(draft):
        assert any(better.plan.params[name] == one[name] for one in known), name


def test_each_part_gets_its_own_ranges(bench):
    draft, context = bench
    names = activations(draft)
    bad = spoiled(draft, names[: len(names) // 2])
    better = choose_ranges(bad, context)
    assert all(better.plan.params[name] != bad.plan.params[name] for name in names[: len(names) // 2])


def test_good_ranges_stay(bench):
    draft, context = bench
    found = [ranges_by(draft, method) for method in ("mse", "minmax")]
    best = min((replace(draft, plan=draft.plan.with_params(params)) for params in found), key=context.error)
    assert choose_ranges(best, context) is None


def test_nothing_but_ranges_changes_and_it_is_deterministic(bench):
    draft, context = bench
    bad = spoiled(draft, activations(draft))
    first, second = (choose_ranges(bad, context) for _ in range(2))
    assert first.model is bad.model
    assert first.reference is bad.reference
    for name, one in first.plan.params.items():
        assert np.array_equal(one.scale, second.plan.params[name].scale), name
    weights = [name for name, group in draft.plan.groups.items() if group.constant]
    assert weights
    assert all(np.array_equal(first.plan.params[n].scale, bad.plan.params[n].scale) for n in weights)


def test_a_method_that_the_user_chose_stays():
    draft, context = bench_for(method="percentile")
    assert choose_ranges(spoiled(draft, activations(draft)), context) is None


def test_without_statistics_there_is_nothing_to_do(bench):
    draft, context = bench
    bad = spoiled(draft, activations(draft))
    assert choose_ranges(replace(bad, statistics={}), context) is None


def test_narrow_ranges_where_the_outputs_saturate():
    draft, context = bench_for(SATURATED, count=32, method="auto")
    better, seen = choose_ranges(draft, context), context.on_fit(16)
    wide = [replace(draft, plan=draft.plan.with_params(ranges_by(draft, name))) for name in ("mse", "minmax")]
    assert seen.error(better) < min(map(seen.error, [draft, *wide])) / 5
