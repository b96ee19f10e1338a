"""Second moments are those of the rows, however they are gathered; blocks are cut and joined again."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from benches import CHAIN, bench_for
from hypothesis import given
from hypothesis import strategies as st

from calibrators.data.samples import Sample
from onnxq.algorithms.budget import Budget, TooLongError
from onnxq.algorithms.layers.im2col import im2col_rows
from onnxq.algorithms.layers.matrices import layers
from onnxq.algorithms.weights import hessian
from onnxq.algorithms.weights.hessian import gather_moments, in_blocks, moments_of, out_of_blocks

DEPTHWISE = """g (float[N,4,6,6] x) => (float[N,4] y) <float[4,1,3,3] w, float[4] b, float[4,4] v>
{ a = Conv <group = 4> (x, w, b)  p = GlobalAveragePool (a)  f = Flatten (p)  y = MatMul (f, v) }"""


def gather(draft, chosen, context):
    with ThreadPoolExecutor(2) as pool:
        yield from gather_moments(draft.reference, chosen, context, pool)


def gathered(draft, context):
    parts = list(gather(draft, layers(draft.reference, draft.plan), context))
    return {layer.name: found for part in parts for layer, found in part}, len(parts)


def all_rows(draft, context, layer):
    """Of every sample, at every place."""
    node = draft.reference.graph.node(layer.name)

    def look(number, arrays):
        return im2col_rows(node, arrays[layer.data.tensor], 10**6, np.random.default_rng(0))

    rows = np.concatenate(list(context.watch(draft.reference, [layer.data.tensor], look)))
    return rows.transpose(1, 0, 2).astype(np.float64)  # [G, n, K]


@pytest.mark.parametrize("text", [CHAIN, DEPTHWISE], ids=["chain", "depthwise"])
def test_moments_are_the_mean_of_products_of_rows(text, monkeypatch):
    monkeypatch.setattr(hessian, "FEWEST", 10**3)
    draft, context = bench_for(text)
    found, parts = gathered(draft, context)
    assert parts == 1
    for layer in layers(draft.reference, draft.plan):
        rows = all_rows(draft, context, layer)
        expected = rows.transpose(0, 2, 1) @ rows / rows.shape[1]
        assert found[layer.name].rows == rows.shape[1]
        np.testing.assert_allclose(found[layer.name].second, expected, rtol=1e-3, atol=1e-4)


def test_every_pass_over_the_samples_counts_as_time(monkeypatch):
    draft, context = bench_for()
    enough = (hessian.PASSES + 1) * len(context.fit) + 1
    context = replace(context, budget=Budget(enough, batch_seconds=1.0))
    assert gathered(draft, context)[1] == 1
    monkeypatch.setattr(hessian, "MOST_BYTES", 1)  # one pass for each layer
    with pytest.raises(TooLongError):
        gathered(draft, context)


def test_the_same_samples_give_the_same_bits_on_any_number_of_threads():
    draft, context = bench_for()
    one, other = (
        gathered(draft, context.with_config(context.config.model_copy(update={"threads": threads})))[0]
        for threads in (1, 3)
    )
    assert all(np.array_equal(one[name].second, other[name].second) for name in one)
    seeded = gathered(draft, context.with_config(context.config.model_copy(update={"seed": 1})))[0]
    assert any(not np.array_equal(one[name].second, seeded[name].second) for name in one)


def test_what_does_not_fit_in_memory_together_is_gathered_apart(monkeypatch):
    draft, context = bench_for()
    together, _ = gathered(draft, context)
    monkeypatch.setattr(hessian, "MOST_BYTES", 4 * 72 * 72)
    apart, parts = gathered(draft, context)
    assert parts > 1
    assert list(apart) == list(together)
    assert all(apart[name].second.shape == together[name].second.shape for name in apart)


@pytest.mark.parametrize("by_bytes", [True, False])
def test_of_a_huge_layer_only_blocks_along_the_diagonal_are_kept(by_bytes, monkeypatch):
    monkeypatch.setattr(hessian, "FEWEST", 10**3)
    draft, context = bench_for()
    (whole,) = (m.second for name, m in gathered(draft, context)[0].items() if name == "Conv_c")
    limit = 4 * 72 * 10
    monkeypatch.setattr(hessian, "MOST_BYTES" if by_bytes else "WIDTHS", limit if by_bytes else (10,))
    (blocks,) = (m.second for name, m in gathered(draft, context)[0].items() if name == "Conv_c")
    count, width, _ = blocks.shape
    assert count > 1
    assert 4 * blocks.size <= 1.25 * limit, "the last one is filled up"
    for number, block in enumerate(blocks):
        start, end = number * width, min((number + 1) * width, 72)
        np.testing.assert_allclose(
            block[: end - start, : end - start], whole[0, start:end, start:end], rtol=1e-4
        )
        assert not block[end - start :].any()


def test_one_long_sample_gives_no_more_rows_than_fit_into_memory(monkeypatch):
    text = "g (float[N,8,4000] x) => (float[N,2,M] y) <float[2,8,20] w> { c = Conv (x, w)  y = Abs (c) }"
    draft, context = bench_for(text, count=1)
    ((layer, found),) = next(gather(draft, layers(draft.reference, draft.plan), context))
    assert found.rows == 16 * 160
    monkeypatch.setattr(hessian, "ROW_BYTES", 4 * 160 * 100)
    ((layer, found),) = next(gather(draft, [layer], context))
    assert found.rows == 100


def test_infinities_are_passed_over():
    text = "g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { a = Abs (x)  y = MatMul (a, w) }"
    draft, context = bench_for(text)
    fit = [Sample("zeros", {"x": np.array([[1, np.inf, -2, -np.inf]], np.float32)})]
    (found,) = gathered(draft, replace(context, fit=fit))[0].values()
    row = np.array([1, 0, 2, 0], np.float32)
    assert np.array_equal(found.second, np.outer(row, row)[None])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 25))
def test_blocks_are_joined_again(groups, count, inputs, width):
    matrices = np.arange(1, groups * count * inputs + 1).reshape(groups, count, inputs)
    blocks = in_blocks(matrices, width)
    number = -(-inputs // width)
    assert len(blocks) == groups * number
    assert (blocks == 0).sum() == (blocks.size - matrices.size)
    assert np.array_equal(out_of_blocks(blocks, inputs), matrices)
    for group, start in ((g, b * width) for g in range(groups) for b in range(number)):
        block = blocks[group * number + start // width]
        expected = matrices[group, :, start : start + width]
        assert np.array_equal(block[:, : expected.shape[1]], expected)


# --- What may be expected of other rows -----------------------------------------------------------


def batches(count, rows, inputs, seed=0, own=1.0, mean=0.0):
    """Rows that are alike within a batch, the more so the larger ``own`` is."""
    rng = np.random.default_rng(seed)
    alike = own * rng.normal(size=(count, 2, 1, inputs))
    return [np.float32(mean + one + rng.normal(size=(2, rows, inputs))) for one in alike]


def squared(array):
    return np.square(array).sum(axis=(1, 2))


def test_the_doubt_is_the_variance_of_the_mean_over_batches():
    parts = batches(30, 8, 6, mean=3.0)
    found = moments_of(parts)
    mean = np.concatenate(parts, 1).mean(1, keepdims=True, dtype=np.float64)
    each = np.array([(part - mean).transpose(0, 2, 1) @ (part - mean) / 8 for part in parts])
    np.testing.assert_allclose(found.covariance, each.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.mean, mean[:, 0], rtol=1e-5)
    expected = each.var(axis=0, ddof=1).sum(axis=(1, 2)) / 30
    np.testing.assert_allclose(
        found.doubt, expected, rtol=0.2
    )  # not exact: it is counted from the first rows' mean


def test_of_many_batches_some_together_tell_the_same():
    parts = batches(400, 8, 6, own=1.0)
    each = np.array([part.transpose(0, 2, 1) @ part / 8 for part in parts])
    expected = each.var(axis=0, ddof=1).sum(axis=(1, 2)) / 400
    np.testing.assert_allclose(moments_of(parts).doubt, expected, rtol=0.4)


def test_a_batch_without_rows_is_passed_over():
    parts = batches(5, 8, 6)
    empty = parts[0][:, :0]
    found, expected = moments_of([empty, *parts, empty]), moments_of(parts)
    np.testing.assert_array_equal(found.damped, expected.damped)
    assert moments_of([empty]).rows == 0
    np.linalg.cholesky(moments_of([empty]).damped)


@pytest.mark.parametrize("count", [4, 12, 50])
@pytest.mark.parametrize("own", [0.0, 2.0])
def test_it_is_closer_to_the_truth_than_what_was_seen(count, own):
    found = moments_of(batches(count, 5, 20, own=own, mean=1.0))
    truth = 1 + (1 + own**2) * np.eye(20)
    assert (squared(found.damped - truth) < squared(found.second - truth)).all()


def test_many_samples_are_believed():
    parts = batches(2000, 5, 4)
    found = moments_of([part * np.float32([1, 2, 3, 4]) for part in parts])
    np.testing.assert_allclose(found.damped, found.second, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("kind", ["dead inputs", "all dead", "all alike", "few rows"])
def test_it_is_always_positive_definite(kind, scale, count, mean):
    parts = batches(count, 3, 12, mean=mean)
    for part in parts:
        if kind == "dead inputs":
            part[:, :, 3:6] = 0
        elif kind == "all dead":
            part[:] = 0
        elif kind == "all alike":
            part[:] = part[:1, :1, :1]
        part *= np.float32(scale)
    found = moments_of(parts).damped
    values = np.linalg.eigvalsh(found)
    assert np.isfinite(found).all()
    assert (values > 1e-7 * values.max(axis=1, keepdims=True)).all()
    np.linalg.cholesky(found)
