"""Ranges that are cut where the outputs gain by it, and left alone where they cannot be too wide."""

from dataclasses import replace

import numpy as np
from benches import bench_for

from onnxq.algorithms.activation_clipping import MULTIPLES, SAMPLES, tighten_ranges
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.core.numerics import dequantize


def widened(draft, factor):
    """With ranges of activations that end far behind all that occurs."""
    wide = {
        name: replace(draft.plan.params[name], scale=np.float32(factor) * draft.plan.params[name].scale)
        for name, group in draft.plan.groups.items()
        if group.observed_tensors
    }
    return replace(draft, plan=draft.plan.with_params({**draft.plan.params, **wide}))


def factors(draft, tightened):
    """By which each group's scale was multiplied."""
    before, after = draft.plan.params, tightened.plan.params
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].zero_point, after[name].zero_point) for name in before)
    assert all(before[name].scale.shape == after[name].scale.shape for name in before)
    assert all(after[name].scale.dtype == np.float32 for name in after)
    return {name: np.max(after[name].scale / before[name].scale) for name in before}


def noises(draft, context):
    return {one.group.name: one.quality.noise for one in sensitivities(draft, context, samples=SAMPLES)}


def test_ranges_that_are_too_wide_are_cut():
    draft, context = bench_for()
    wide = widened(draft, 2)
    tightened = tighten_ranges(wide, context)
    found = factors(wide, tightened)
    for name, group in wide.plan.groups.items():
        assert found[name] < 1 if group.observed_tensors else found[name] == 1, name


def test_no_group_alone_does_more_harm_than_before():
    draft, context = bench_for()
    tightened = tighten_ranges(draft, context)
    allowed = (1, *MULTIPLES)
    assert all(min(abs(f - one) for one in allowed) < 1e-6 for f in factors(draft, tightened).values())
    before, after = noises(draft, context), noises(tightened, context)
    assert all(after[name] <= before[name] for name in before)


def test_ranges_that_are_too_narrow_are_not_cut_further():
    draft, context = bench_for()
    narrow = widened(draft, 0.3)
    assert set(factors(narrow, tighten_ranges(narrow, context)).values()) == {1}


def test_nothing_but_ranges_changes_and_it_is_deterministic():
    draft, context = bench_for()
    params = {name: one.scale.copy() for name, one in draft.plan.params.items()}
    first, second = (tighten_ranges(draft, context) for _ in range(2))
    assert first.model is draft.model
    assert first.reference is draft.reference
    assert factors(draft, first) == factors(draft, second)
    assert all(np.array_equal(one.scale, params[name]) for name, one in draft.plan.params.items())


def test_a_range_that_covers_all_that_the_producer_can_give_stays():
    draft, context = bench_for()
    wide = widened(draft, 2)
    name = next(name for name, group in wide.plan.groups.items() if group.observed_tensors)
    params, group = wide.plan.params[name], wide.plan.groups[name]
    ends = dequantize(np.asarray(group.spec.limits), params, group.spec)
    groups = {**wide.plan.groups, name: replace(group, bounds=tuple(map(float, ends)))}
    found = factors(wide, tighten_ranges(replace(wide, plan=replace(wide.plan, groups=groups)), context))
    assert found[name] == 1
    assert min(found.values()) < 1


def test_without_chosen_ranges_there_is_nothing_to_do():
    draft, context = bench_for()
    fixed = {name: replace(group, observed_tensors=()) for name, group in draft.plan.groups.items()}
    assert tighten_ranges(replace(draft, plan=replace(draft.plan, groups=fixed)), context) is None
