"""Weights of few bits, chosen layer after layer from what the quantized layers before give."""

from dataclasses import replace

import numpy as np
import pytest
from benches import CHAIN, bench_for

from calibrators.data.samples import Sample
from onnxq.algorithms.layers.biases import BiasAndActivation, bias_of
from onnxq.algorithms.layers.matrices import layers
from onnxq.algorithms.weights import sequential_gptq as module
from onnxq.algorithms.weights.bias_correction import correct_biases
from onnxq.algorithms.weights.gptq import WeightGrid, gptq
from onnxq.algorithms.weights.sequential_gptq import (
    Outputs,
    Rows,
    round_sequentially,
    rounded_columns,
    sequential_gptq,
)
from onnxq.core.numerics import dequantize, quantize

ROWS = """g (float[N,20,12] x) => (float[N,20,5] y)
<float[12,16] w1, float[16] b1, float[12,16] w2, float[16] b2, float[16,5] v>
{ m = MatMul (x, w1)  a = Add (m, b1)  r = Relu (a)  n = MatMul (x, w2)  c = Add (n, b2)  s = Mul (c, r)
  y = MatMul (s, v) }"""

BRANCH = """g (float[N,3,6] x, bool k) => (float[N,3,8] y) <float[6,8] w, float[8] b>
{ m = MatMul (x, w)  a = Add (m, b)
  y = If (k) <then_branch = t () => (float[N,3,8] p) { p = Neg (a) },
              else_branch = e () => (float[N,3,8] q) { q = Abs (a) }> }"""


def constants(draft):
    return {name: value.const_value.numpy() for name, value in draft.model.graph.initializers.items()}


def changed(before, after):
    old, new = constants(before), constants(after)
    return {name for name in old if not np.array_equal(old[name], new[name])}


def test_the_model_comes_closer_than_by_moments_alone():
    draft, context = bench_for(CHAIN, bits=4, count=40, held=20)
    plain = correct_biases(gptq(draft, context), context)
    ordered = round_sequentially(plain, context)
    assert context.error(ordered) < context.error(plain)


def test_layers_that_read_the_same_integers_are_done_together():
    draft, context = bench_for(ROWS, bits=4, count=40)
    nearest = correct_biases(draft, context)
    stops = module._stops(nearest.quantized(), layers(draft.reference, draft.plan))
    assert sorted(sorted(layer.weight.tensor for layer in found) for found in stops.values()) == [
        ["v"],
        ["w1", "w2"],
    ]
    ordered = round_sequentially(nearest, context)
    assert "v" in changed(nearest, ordered)


def test_weights_lie_on_their_grid_and_nothing_but_they_and_biases_changes():
    draft, context = bench_for(bits=4, count=20)
    ordered = round_sequentially(draft, context)
    weights = {layer.weight.tensor: layer for layer in layers(draft.reference, draft.plan)}
    places = (bias_of(draft.reference.graph.node(layer.name)) for layer in weights.values())
    biases = {bias.tensor for bias in places if bias is not None}
    names = changed(draft, ordered)
    assert names & set(weights)
    assert names <= set(weights) | biases
    assert (ordered.reference, ordered.plan) == (draft.reference, draft.plan)
    for name in names & set(weights):
        params, spec = draft.plan.params[weights[name].weight.group], weights[name].weight.spec
        values = constants(ordered)[name]
        np.testing.assert_allclose(
            dequantize(quantize(values, params, spec), params, spec), values, rtol=1e-6
        )


@pytest.mark.parametrize("options", [{}, {"bits": 6}], ids=["8 bits", "6 bits"])
def test_weights_of_more_bits_are_rounded_by_moments(options):
    draft, context = bench_for(**options)
    assert round_sequentially(draft, context) is None
    rounded, expected = constants(sequential_gptq(draft, context)), constants(gptq(draft, context))
    assert all(np.array_equal(rounded[name], expected[name]) for name in expected)


def test_threads_change_no_bit():
    draft, context = bench_for(bits=4, count=20)
    first, second = (
        constants(
            round_sequentially(draft, context.with_config(context.config.model_copy(update={"threads": n})))
        )
        for n in (1, 3)
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_each_layer_sees_what_became_of_those_before(monkeypatch):
    """The rows of the quantized model are those of the draft as it is in the end, for all layers before."""
    draft, context = bench_for(bits=4, count=10)
    seen, found = {}, module._rows

    def spy(given, layer, exact, arrays, context):
        seen[layer.name] = [np.array(array) for array in arrays]
        return found(given, layer, exact, arrays, context)

    monkeypatch.setattr(module, "_rows", spy)
    ordered = round_sequentially(draft, context)
    quantized = ordered.quantized()
    for stop, readers in module._stops(quantized, layers(draft.reference, draft.plan)).items():
        runs = context.watch(quantized, [stop], lambda _, arrays, stop=stop: arrays[stop])
        for run, relayed in zip(runs, seen[readers[0].name], strict=True):
            np.testing.assert_array_equal(run, relayed)


@pytest.mark.parametrize("best", module.SHARES)
def test_the_way_that_serves_other_batches_best_is_gone(best):
    exact, rows, _grid = task(1, 12, 10)
    asked = []

    def rounded(learn, shares):
        return [exact if share == best else np.zeros_like(exact) for share in shares]

    def some(batches):
        asked.append(list(batches))
        return rows

    assert module._best_share(exact, open_end(1, 12), some, 7, rounded) == best
    assert asked == [[0, 1, 2, 3, 5, 6], [4]]


def test_few_batches_make_up_for_nothing():
    exact, rows, _grid = task(1, 12, 10)
    assert module._best_share(exact, open_end(1, 12), lambda _: rows, 4, None) == 0


def test_the_whole_is_dropped_if_it_is_no_better_on_held_out_samples(monkeypatch):
    draft, context = bench_for(bits=4, count=20)
    monkeypatch.setattr(module, "round_sequentially", lambda given, context: draft)
    rounded, expected = constants(sequential_gptq(draft, context)), constants(gptq(draft, context))
    assert all(np.array_equal(rounded[name], expected[name]) for name in expected)


def test_batches_that_the_model_refuses_are_passed_over():
    draft, context = bench_for(bits=4, count=20)
    bad = Sample("bad", {"x": np.zeros((1, 3, 6, 6), np.float32)})
    told = []
    mixed = replace(context, fit=[bad, *context.fit], on_bad=lambda error, count: told.append(count))
    assert round_sequentially(draft, mixed) is not None
    assert told == [1]
    assert round_sequentially(draft, replace(mixed, fit=[bad])) is None


def test_memory_is_bounded(monkeypatch):
    draft, context = bench_for(bits=4, count=20)
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    names = [batch.name for batch in module._batches(draft, layers(draft.reference, draft.plan), context)]
    assert len(names) == module.FEWEST
    assert (names[0], names[-1]) == (context.fit[0].name, context.fit[-1].name)
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    assert round_sequentially(draft, context) is None


def test_models_that_cannot_be_cut_are_rounded_by_moments():
    draft, context = bench_for(BRANCH, feeds={"k": np.array(True)}, bits=4)
    assert round_sequentially(draft, context) is None
    assert sequential_gptq(draft, context) is not None


# --- One layer ------------------------------------------------------------------------------------


def task(groups, outputs, inputs, seed=0):
    """Weights, a grid of 16 levels for them, and rows of which the quantized model has lost some."""
    rng = np.random.default_rng(seed)
    exact = rng.normal(size=(groups, outputs, inputs))
    mixing = rng.normal(size=(groups, 3, inputs))
    rows = rng.normal(size=(groups, 600, 3)) @ mixing + 0.3 * rng.normal(size=(groups, 600, inputs))
    full = np.ones_like(exact)
    return (
        exact,
        made(rows.astype(np.float32), 0.9 * rows.astype(np.float32)),
        WeightGrid(0.3 * full, -8 * full, 7 * full),
    )


def made(exact, given):
    """Rows of one batch."""
    return Rows(exact, given, [given.shape[1]])


def open_end(groups, outputs):
    """No bias and no activation."""
    return BiasAndActivation(np.zeros((groups, 1, outputs), np.float32))


def missing(exact, rounded, rows):
    return np.square(rows.exact @ exact.transpose(0, 2, 1) - rows.given @ rounded.transpose(0, 2, 1)).mean()


@pytest.mark.parametrize("shape", [(1, 12, 10), (6, 1, 9), (2, 5, 8)], ids=str)
def test_weights_make_up_for_what_the_rows_have_lost(shape):
    exact, rows, grid = task(*shape)
    blind, half, whole = rounded_columns(exact, rows, grid, (0.0, 0.5, 1.0))
    assert np.array_equal(blind, rounded_columns(exact, made(rows.given, rows.given), grid, (1.0,))[0])
    assert missing(exact, half, rows) < 0.9 * missing(exact, blind, rows)
    assert missing(exact, whole, rows) < 0.9 * missing(exact, blind, rows)


@pytest.mark.parametrize("shape", [(1, 12, 10), (6, 1, 9), (5, 3, 4)], ids=str)
def test_parts_are_rounded_as_the_whole(shape, monkeypatch):
    exact, rows, grid = task(*shape)
    whole = rounded_columns(exact, rows, grid, module.SHARES, threads=2)
    monkeypatch.setattr(module, "TOGETHER", 4)
    np.testing.assert_allclose(rounded_columns(exact, rows, grid, module.SHARES, threads=2), whole, atol=1e-9)


# --- The bias -------------------------------------------------------------------------------------


def cut(limits, seed=0):
    """Float and rounded weights, what is behind them, and rows."""
    exact, rows, grid = task(1, 40, 10, seed)
    (rounded,) = rounded_columns(exact, rows, grid, (0.0,))
    bias = np.random.default_rng(seed).normal(size=(1, 1, 40)).astype(np.float32)
    return exact, rounded, BiasAndActivation(bias, limits), rows


def left(exact, rounded, end, rows, shift):
    """Squared errors behind the activation, by output, with another bias."""
    wanted = end.of(rows.exact @ exact.transpose(0, 2, 1).astype(np.float32))
    found = end.of(rows.given @ rounded.transpose(0, 2, 1).astype(np.float32) + shift)
    return np.square(wanted - found, dtype=np.float64).sum(axis=1)


def test_without_an_activation_the_bias_takes_the_mean_that_is_missing():
    exact, rounded, end, rows = cut((-np.inf, np.inf))
    off = rows.exact @ exact.transpose(0, 2, 1) - rows.given @ rounded.transpose(0, 2, 1)
    outputs = Outputs(exact, rounded, end, rows)
    np.testing.assert_allclose(outputs.shift, off.mean(axis=1, keepdims=True), atol=1e-5)
    assert outputs.error == pytest.approx(np.square(off - off.mean(axis=1)).sum(), rel=1e-4)


@pytest.mark.parametrize("limits", [(0, np.inf), (0, 1), (-1, 2)], ids=str)
def test_the_bias_is_the_best_one_behind_an_activation(limits):
    given = cut(limits)
    outputs = Outputs(*given)
    least = left(*given, outputs.shift)
    assert outputs.error == pytest.approx(least.sum(), rel=1e-5)
    plain = Outputs(given[0], given[1], open_end(1, 40), given[3]).shift
    assert least.sum() < 0.98 * left(*given, plain).sum()
    for move in (-0.1, 0.1):
        assert least.sum() < left(*given, outputs.shift + move * np.abs(outputs.shift).max()).sum()


def test_a_channel_that_is_always_cut_off_keeps_its_bias():
    exact, rounded, end, rows = cut((0, np.inf))
    outputs = Outputs(exact, rounded, replace(end, bias=end.bias - 1e4), rows)
    assert not outputs.shift.any()
    assert outputs.error == 0
