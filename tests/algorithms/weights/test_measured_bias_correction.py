"""Biases measured in the quantized model, layer after layer, and the relay that runs it from stop to stop."""

from dataclasses import replace

import numpy as np
import pytest
from benches import CHAIN, bench_for

from calibrators.data.samples import Sample
from onnxq.algorithms.layers.stepwise import run_stepwise
from onnxq.algorithms.weights import bias_correction as module
from onnxq.algorithms.weights.bias_correction import _means, believed, correct_biases_in_order

ROWS = """g (float[N,7,12] x) => (float[N,7,5] y)
<float[12,8] w1, float[8] b1, float[8,8] w2, float[8] b2, float[8,5] v>
{ m = MatMul (x, w1)  a = Add (m, b1)  r = Relu (a)  n = MatMul (r, w2)  c = Add (n, b2)  s = Relu (c)
  y = MatMul (s, v) }"""

BRANCHES = """g (float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,4] o)
{ a = Relu (x)  b = Neg (a)  c = Exp (z)  d = Add (b, c)  e = Mul (a, d)  f = Add (e, x)  o = Abs (c)
  y = Sub (f, a) }"""


def biases(draft):
    values = draft.model.graph.initializers.items()
    return {name: value.const_value.numpy() for name, value in values if name.startswith("b")}


def shifts(draft, context):
    """How far the means of ``a`` and ``c``, the sums with biases, are from the float model's: ``[2, C]``."""
    axis = 1 if len(draft.reference.graph.inputs[0].shape) == 4 else 2

    def look(_, arrays):
        return [_means(arrays[name], axis - arrays[name].ndim) for name in ("a", "c")]

    exact, given = (
        np.mean(list(context.watch(m, ["a", "c"], look)), 0) for m in (draft.reference, draft.quantized())
    )
    return np.abs(given - exact)


@pytest.mark.parametrize(("text", "left"), [(CHAIN, 0.2), (ROWS, 0.01)], ids=["images", "rows"])
def test_means_become_the_float_models_at_every_layer(text, left, monkeypatch):
    """Of images some is ``left``: the biases of convolutions are integers, in steps of their own."""
    monkeypatch.setattr(module, "believed", lambda found: found.mean(axis=0))
    draft, context = bench_for(text, bits=4)
    corrected = correct_biases_in_order(draft, context)
    before, after = shifts(draft, context), shifts(corrected, context)
    assert (before.max(axis=1) > 1e-2).all()
    assert (after.max(axis=1) < left * before.max(axis=1)).all()


def test_only_biases_change_and_it_is_deterministic():
    draft, context = bench_for(bits=4)
    old = biases(draft)
    first, second = (
        correct_biases_in_order(draft, context.with_config(context.config.model_copy(update={"threads": n})))
        for n in (1, 3)
    )
    assert old.keys() >= {"b1", "b2"}
    assert all(np.array_equal(array, biases(second)[name]) for name, array in biases(first).items())
    assert not np.array_equal(biases(first)["b1"], old["b1"])
    assert first.reference is draft.reference
    assert all(np.array_equal(biases(draft)[name], array) for name, array in old.items())


def test_batches_that_the_model_refuses_are_passed_over():
    draft, context = bench_for(bits=4)
    bad = Sample("bad", {"x": np.zeros((1, 3, 6, 6), np.float32)})
    told = []
    mixed = replace(
        context, fit=[bad, *context.fit[:5], bad, *context.fit[5:]], on_bad=lambda error, n: told.append(n)
    )
    expected, found = (biases(correct_biases_in_order(draft, one)) for one in (context, mixed))
    assert told == [1, 1]
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    none = replace(context, fit=[bad], on_bad=lambda error, n: None)
    assert correct_biases_in_order(draft, none) is None


def test_memory_is_bounded(monkeypatch):
    draft, context = bench_for(bits=4)
    seen = []
    monkeypatch.setattr(
        module, "run_stepwise", lambda model, stops, batches, *_: seen.append([b.name for b in batches])
    )
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    correct_biases_in_order(draft, context)
    assert len(seen[0]) == module.FEWEST
    assert (seen[0][0], seen[0][-1]) == (context.fit[0].name, context.fit[-1].name), "spread over all"


def test_without_biases_or_with_control_flow_there_is_nothing_to_do():
    no_bias = "g (float[N,4,8] x) => (float[N,4,5] y) <float[8,5] v> { y = MatMul (x, v) }"
    draft, context = bench_for(no_bias)
    assert correct_biases_in_order(draft, context) is None
    branch = """g (float[N,3,6] x, bool k) => (float[N,3,8] y) <float[6,8] w, float[8] b>
    { m = MatMul (x, w)  a = Add (m, b)
      y = If (k) <then_branch = t () => (float[N,3,8] p) { p = Neg (a) },
                  else_branch = e () => (float[N,3,8] q) { q = Abs (a) }> }"""
    draft, context = bench_for(branch, feeds={"k": np.array(True)})
    assert correct_biases_in_order(draft, context) is None


# --- how far a measured shift is believed ---------------------------------------------------------


def test_a_shift_that_every_sample_has_is_believed():
    same = np.tile([0.5, -2.0, 0.0], (6, 1))
    assert np.array_equal(believed(same), same[0])
    assert np.array_equal(believed(same[:1]), same[0])


def test_a_shift_that_chance_may_have_made_is_not():
    noise = np.random.default_rng(0).normal(size=(16, 4000))
    shrunk = believed(noise)
    assert np.square(shrunk).mean() < 0.5 * np.square(noise.mean(axis=0)).mean()
    assert (shrunk == 0).mean() > 0.5


def test_shifts_shrink_and_keep_their_sign():
    found = np.random.default_rng(0).normal(size=(8, 500)) + np.linspace(-2, 2, 500)
    mean, shrunk = found.mean(axis=0), believed(found)
    assert (np.abs(shrunk) <= np.abs(mean)).all()
    assert (shrunk * mean >= 0).all()
    clear = np.abs(mean) > 1.5
    assert (shrunk[clear] / mean[clear] > 0.8).all()


# --- relay ----------------------------------------------------------------------------------------

STOPS = ("a", "c", "e", "f")


def scene():
    draft, context = bench_for(BRANCHES, feeds={"z": np.full((1, 4), 0.5, np.float32)})
    return draft.reference, context


def relayed(model, batches, change, stops=STOPS):
    seen = {}

    def one(stop, arrays):
        seen[stop] = arrays
        return change(stop, arrays)

    run_stepwise(model, stops, batches, one, threads=2)
    return seen


def whole(model, context, stops=STOPS):
    runs = list(context.watch(model, stops, lambda _, arrays: [arrays[stop] for stop in stops]))
    return dict(zip(stops, zip(*runs, strict=True), strict=True))


@pytest.mark.parametrize("stops", [STOPS, ("e", "a"), ("c",), ("y",)], ids=str)
def test_without_a_change_it_gives_what_the_whole_model_gives(stops):
    model, context = scene()
    seen, expected = (
        relayed(model, context.fit, lambda stop, arrays: arrays, stops),
        whole(model, context, stops),
    )
    order = [v.name for node in model.graph for v in node.outputs if v.name in stops]
    assert list(seen) == order
    for stop in stops:
        np.testing.assert_allclose(np.stack(seen[stop]), np.stack(expected[stop]), rtol=1e-6)


def test_a_change_is_seen_by_all_behind_it_and_nobody_before():
    model, context = scene()
    expected = whole(model, context)
    seen = relayed(model, context.fit, lambda stop, arrays: [array + (stop == "a") for array in arrays])
    for number, batch in enumerate(context.fit):
        a, c = (expected[name][number] for name in "ac")
        e = (a + 1) * (c - (a + 1))
        assert np.array_equal(seen["a"][number], a)
        assert np.array_equal(seen["c"][number], c)
        np.testing.assert_allclose(seen["e"][number], e, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen["f"][number], e + batch.feeds["x"], rtol=1e-5, atol=1e-6)


def test_the_batches_it_is_given_stay_as_they_are():
    model, context = scene()
    before = [{name: array.copy() for name, array in batch.feeds.items()} for batch in context.fit]
    relayed(model, context.fit, lambda stop, arrays: [array * 2 for array in arrays])
    for batch, feeds in zip(context.fit, before, strict=True):
        assert batch.feeds.keys() == feeds.keys()
        assert all(np.array_equal(batch.feeds[name], array) for name, array in feeds.items())
