"""Rounding by second moments: less output error than to nearest, on the grid, within memory."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from benches import CHAIN, bench_for, damped

from onnxq.algorithms.budget import SPEED, Budget, TooLongError
from onnxq.algorithms.layers.matrices import layers, matrices, weights_of
from onnxq.algorithms.weights import hessian
from onnxq.algorithms.weights.gptq import (
    BLOCK,
    WeightGrid,
    coordinate_descent,
    gptq,
    gptq_columns,
    output_error,
)
from onnxq.algorithms.weights.hessian import in_blocks, out_of_blocks
from onnxq.core.numerics import dequantize, grid_of, quantize
from onnxq.core.plan import QuantSpec

MATRIX = """g (float[N,16,24] x) => (float[N,16,6] y) <float[24,40] w1, float[40] b1, float[40,6] w2>
{ p = MatMul (x, w1)  s = Add (p, b1)  r = Relu (s)  y = MatMul (r, w2) }"""

GROUPED = """g (float[N,8,6,6] x) => (float[N,5] y)
<float[8,1,3,3] w1, float[8] b1, float[8,4,3,3] w2, float[8] b2, float[8,5] w3>
{ a = Conv <group = 8> (x, w1, b1)  r = Relu (a)  c = Conv <group = 2> (r, w2, b2)
  p = GlobalAveragePool (c)  f = Flatten (p)  y = MatMul (f, w3) }"""


def correlated(groups, inputs, seed=0, rank=4):
    """``E[x x^T]`` of inputs that follow a few hidden ones, ``[G, K, K]``."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(groups, 200, rank)) @ rng.normal(size=(groups, rank, inputs))
    rows += 0.2 * rng.normal(size=rows.shape)
    return rows.transpose(0, 2, 1) @ rows / 200


def grid_for(exact, bits, symmetric=True):
    """One scale a row."""
    levels = 2**bits - 1
    low, high = (f(exact, axis=2, keepdims=True) for f in (np.min, np.max))
    scale = np.maximum(-low, high) / (levels // 2) if symmetric else (high - low) / levels
    lowest = np.full(scale.shape, -(levels // 2)) if symmetric else np.rint(low / scale)
    highest = np.full(scale.shape, levels // 2) if symmetric else lowest + levels
    return WeightGrid(*(np.broadcast_to(part, exact.shape) for part in (scale, lowest, highest)))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def nearest(exact, grid):
    return np.rint(exact / grid.scale).clip(grid.lowest, grid.highest) * grid.scale


def assert_on(grid, rounded):
    levels = rounded / grid.scale
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-6)
    assert (np.rint(levels) >= grid.lowest).all()
    assert (np.rint(levels) <= grid.highest).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("groups", "rows", "inputs"), [(1, 8, 32), (4, 3, 9), (1, 5, BLOCK + 9), (2, 2, 2 * BLOCK)]
)
def test_outputs_change_less_than_by_rounding_to_nearest(groups, rows, inputs, bits, symmetric):
    exact, second = normal(groups, rows, inputs), correlated(groups, inputs)
    grid = grid_for(exact, bits, symmetric)
    rounded = gptq_columns(exact, damped(second), grid)
    assert_on(grid, rounded)
    error = output_error(rounded - exact, second).sum()
    assert error < 0.9 * output_error(nearest(exact, grid) - exact, second).sum()


@pytest.mark.parametrize("inputs", [1, 2, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_the_error_is_within_the_bound_that_the_factors_give(inputs):
    """No more than ``scale^2 / 4 * sum of R_kk^2``, where no limit is met; R_kk^2 by inverting what is behind k."""
    exact, second = normal(1, 6, inputs), damped(correlated(1, inputs))
    free = np.full(exact.shape, np.inf)
    grid = WeightGrid(np.full(exact.shape, 0.3), -free, free)
    error = output_error(gptq_columns(exact, second, grid) - exact, second)
    order = np.argsort(-np.diagonal(second[0]), kind="stable")
    sorted_ = second[0][np.ix_(order, order)]
    factors = [1 / np.linalg.inv(sorted_[k:, k:])[0, 0] for k in range(inputs)]
    assert error.max() <= 0.3**2 / 4 * sum(factors) * (1 + 1e-9)


def test_of_inputs_that_have_nothing_to_do_with_each_other_each_goes_to_nearest():
    exact = normal(2, 4, 70)
    grid = grid_for(exact, 4)
    second = np.stack([np.diag(np.random.default_rng(i).uniform(0.5, 2, 70)) for i in range(2)])
    assert np.array_equal(gptq_columns(exact, second, grid), nearest(exact, grid))


def test_blocks_that_do_not_interact_give_the_same_as_the_whole():
    blocks = correlated(3, 20)
    whole = np.zeros((1, 60, 60))
    for number, block in enumerate(damped(blocks)):
        whole[0, 20 * number :, 20 * number :][:20, :20] = block
    exact = normal(1, 5, 60)
    grid = grid_for(exact, 4)
    apart = WeightGrid(*(in_blocks(part, 20) for part in (grid.scale, grid.lowest, grid.highest)))
    found = out_of_blocks(gptq_columns(in_blocks(exact, 20), damped(blocks), apart), 60)
    assert np.array_equal(found, gptq_columns(exact, whole, grid))
    assert not np.array_equal(found, nearest(exact, grid))


def test_single_precision_rounds_like_double_precision():
    exact, second = normal(2, 8, 100).astype(np.float32), damped(correlated(2, 100))
    grid = grid_for(exact, 4)
    found = gptq_columns(exact, second, grid)
    assert found.dtype == np.float32
    same = gptq_columns(exact.astype(np.float64), second, grid)
    np.testing.assert_allclose(output_error(found - exact, second), output_error(same - exact, second), 0.05)


def test_one_input_goes_to_nearest():
    exact = normal(5, 3, 1)
    grid = replace(grid_for(exact, 3), scale=np.full(exact.shape, 0.4))
    assert np.array_equal(gptq_columns(exact, damped(correlated(5, 1)), grid), nearest(exact, grid))


def test_weights_on_the_grid_stay_there():
    exact = normal(2, 4, 20)
    grid = grid_for(exact, 4)
    placed = nearest(exact, grid)
    assert np.array_equal(gptq_columns(placed, damped(correlated(2, 20)), grid), placed)


def dead(second):
    second[:, 3:6] = second[:, :, 3:6] = 0
    return second


SINGULAR = {
    "dead inputs": dead(correlated(2, 12)),
    "all dead": np.zeros((2, 12, 12)),
    "one group dead": np.stack([np.zeros((12, 12)), correlated(1, 12)[0]]),
    "all alike": np.ones((2, 12, 12)),
    "few rows": np.stack([np.outer(row, row) for row in normal(2, 12, seed=3)]),
    "huge": correlated(2, 12) * 1e30,
    "tiny": correlated(2, 12) * 1e-30,
}


@pytest.mark.parametrize("second", SINGULAR.values(), ids=SINGULAR)
def test_singular_moments_are_no_obstacle(second):
    exact = normal(2, 5, 12)
    grid = grid_for(exact, 4)
    rounded = gptq_columns(exact, damped(second), grid)
    assert_on(grid, rounded)
    unrounded = output_error(nearest(exact, grid) - exact, second).sum()
    assert output_error(rounded - exact, second).sum() <= unrounded


def test_dead_inputs_go_to_nearest_and_change_nothing():
    exact, second = normal(2, 5, 12), dead(correlated(2, 12))
    grid = grid_for(exact, 4)
    rounded = gptq_columns(exact, damped(second), grid)
    assert np.array_equal(rounded[:, :, 3:6], nearest(exact, grid)[:, :, 3:6])


# --- whole models ---------------------------------------------------------------------------------


def changed(draft, rounded):
    """The weights before and after, by name, of those that became others."""
    before, after = (
        {name: value.const_value.numpy() for name, value in one.model.graph.initializers.items()}
        for one in (draft, rounded)
    )
    assert before.keys() == after.keys()
    return {
        name: (before[name], after[name]) for name in before if not np.array_equal(before[name], after[name])
    }


def output_errors(draft, other, context):
    """Noise over signal of each layer's outputs, by what its weights became, on all places of the samples."""
    from_all, errors = layers(draft.reference, draft.plan), {}
    for layer in from_all:
        node, new = draft.reference.graph.node(layer.name), other.model.graph.node(layer.name)
        params, spec = draft.plan.params[layer.weight.group], layer.weight.spec
        stored = dequantize(quantize(weights_of(new), params, spec), params, spec)
        off = (matrices(node, stored) - matrices(node, weights_of(node))).astype(np.float64)
        with ThreadPoolExecutor(1) as pool:
            (found,) = next(hessian.gather_moments(draft.reference, [layer], context, pool))
        if found[1].mean.shape[1] == layer.shape[2]:
            errors[layer.name] = output_error(off, found[1].damped).sum()
    return errors


@pytest.mark.parametrize("text", [CHAIN, MATRIX, GROUPED], ids=["chain", "matrix", "grouped"])
@pytest.mark.parametrize("bits", [3, 4])
def test_a_model_with_few_bits_comes_closer_on_samples_it_was_not_fitted_on(text, bits):
    draft, context = bench_for(text, bits=bits, count=40, held=16)
    rounded = gptq(draft, context)
    assert context.error(rounded) < context.error(draft)


@pytest.mark.parametrize("weight", ["int4", "uint4"])
def test_types_of_4_bits_come_closer(weight):
    draft, context = bench_for(MATRIX, count=40, held=16, weight=weight)
    assert context.error(gptq(draft, context)) < 0.9 * context.error(draft)


@pytest.mark.parametrize("text", [CHAIN, MATRIX, GROUPED], ids=["chain", "matrix", "grouped"])
@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 4, "per_tensor": True}, {}], ids=str)
def test_weights_lie_on_their_grid_and_no_layer_is_worse(text, options):
    draft, context = bench_for(text, **options)
    rounded = gptq(draft, context)
    found = changed(draft, rounded)
    able = {layer.weight.tensor: layer for layer in layers(draft.reference, draft.plan)}
    assert found.keys() == able.keys()
    for name, (before, after) in found.items():
        params, spec = draft.plan.params[able[name].weight.group], able[name].weight.spec
        again = dequantize(quantize(after, params, spec), params, spec)
        np.testing.assert_allclose(again, after, rtol=1e-6)
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
    old, new = (output_errors(draft, one, context) for one in (draft, rounded))
    assert all(new[name] <= old[name] * (1 + 1e-6) for name in old)
    if options:  # of 8 bits there may be nothing to gain
        assert sum(new.values()) < sum(old.values())


def test_nothing_it_was_given_is_changed_and_it_is_deterministic():
    draft, context = bench_for(bits=4)
    weights = {
        name: value.const_value.numpy().copy() for name, value in draft.reference.graph.initializers.items()
    }
    first, second = (
        gptq(draft, context),
        gptq(draft, context.with_config(context.config.model_copy(update={"threads": 3}))),
    )
    assert first.reference is draft.reference
    assert not changed(first, second)
    assert all(
        np.array_equal(draft.reference.graph.initializers[name].const_value.numpy(), weights[name])
        for name in weights
    )


def test_weights_that_two_layers_share_are_left_alone():
    text = """g (float[N,8] x) => (float[N,3] y) <float[8,8] w, float[8,3] v>
    { a = MatMul (x, w)  r = Relu (a)  b = MatMul (r, w)  y = MatMul (b, v) }"""
    draft, context = bench_for(text, bits=4)
    assert changed(draft, gptq(draft, context)).keys() == {"v"}


def test_without_layers_there_is_nothing_to_do():
    draft, context = bench_for(MATRIX, exclude=("op:MatMul", "op:Gemm"))
    assert gptq(draft, context) is None


@pytest.mark.parametrize(("name", "limit"), [("MOST_BYTES", 4 * 72 * 24), ("WIDTHS", (24,))])
def test_a_huge_layer_is_rounded_in_blocks_and_still_comes_closer(name, limit, monkeypatch):
    draft, context = bench_for(bits=4, count=40, held=16)
    whole = gptq(draft, context)
    monkeypatch.setattr(hessian, name, limit)
    held = []
    gathered = hessian.gather_moments

    def watched(*given):
        for part in gathered(*given):
            held.extend(found.covariance.nbytes for _, found in part)
            yield part

    monkeypatch.setattr("onnxq.algorithms.weights.gptq.gather_moments", watched)
    rounded = gptq(draft, context)
    assert max(held) <= 1.25 * 4 * 72 * 24
    assert changed(whole, rounded), "inputs of different blocks know nothing of each other"
    assert context.error(rounded) < 0.9 * context.error(draft)


def test_with_little_time_blocks_are_narrower_and_with_less_there_is_no_rounding():
    draft, context = bench_for(bits=4)
    whole = gptq(draft, context)

    def within(seconds):
        return gptq(draft, replace(context, budget=Budget(seconds, clock=lambda: 0.0)))

    def work(width):
        picks = [hessian._Pick.of(layer, width, [1] * 12) for layer in layers(draft.reference, draft.plan)]
        return sum(pick.work for pick in picks) / SPEED

    assert not changed(whole, within(work(128)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hessian, "WIDTHS", (100, 24, 12))
        narrower = within(0.99 * work(100))
        assert changed(whole, narrower)
        assert not changed(narrower, within(work(24)))
        with pytest.raises(TooLongError) as caught:
            within(0.99 * work(12))
        assert caught.value.seconds == pytest.approx(work(12))


def test_memory_does_not_grow_with_the_square_of_the_inputs(monkeypatch):
    monkeypatch.setattr(hessian, "WIDTHS", (128,))
    text = "g (float[N,64,9000] x) => (float[N,2,M] y) <float[2,64,64] w> { c = Conv (x, w)  y = Abs (c) }"
    draft, context = bench_for(text, count=2, held=1)
    tracemalloc.start()
    assert gptq(draft, context) is not None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = 8 * 4096**2  # the Hessian in double precision
    assert peak < 0.6 * whole


# --- 8-bit floating-point numbers -------------------------------------------------------------------


def fp8_grid(exact):
    scale = np.broadcast_to(np.abs(exact).max(axis=2, keepdims=True) / 448, exact.shape)
    full = np.full(exact.shape, 448.0)
    return WeightGrid(scale, -full, full, grid_of(QuantSpec(ir.DataType.FLOAT8E4M3FN, symmetric=True)))


def test_fp8_is_rounded_by_its_second_moments():
    """Every row is better than rounded to nearest, or as it was; and all lie on the grid."""
    exact, second = normal(2, 16, 24), damped(correlated(2, 24))
    grid = fp8_grid(exact)
    to_nearest = grid.grid.rounded(exact / grid.scale) * grid.scale
    rounded = gptq_columns(exact, second, grid)
    levels = rounded / grid.scale
    np.testing.assert_allclose(levels, levels.astype(ml_dtypes.float8_e4m3fn).astype(np.float64), rtol=1e-12)
    before, after = (output_error(each - exact, second) for each in (to_nearest, rounded))
    assert after.sum() < 0.6 * before.sum()
    best = coordinate_descent(exact, to_nearest, second, grid)
    assert (output_error(best - exact, second) <= before + 1e-12).all()
