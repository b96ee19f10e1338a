"""Second moments are those of the rows, however they are gathered; blocks are cut and joined again."""

from dataclasses import replace

import numpy as np
import pytest
from benches import CHAIN, bench_for
from hypothesis import given
from hypothesis import strategies as st

from calibrators.samples import Sample
from onnxq.algorithms import moments
from onnxq.algorithms.layers import layers
from onnxq.algorithms.moments import gather_moments, in_blocks, out_of_blocks
from onnxq.algorithms.patches import patches

DEPTHWISE = """g (float[N,4,6,6] x) => (float[N,4] y) <float[4,1,3,3] w, float[4] b, float[4,4] v>
{ a = Conv <group = 4> (x, w, b)  p = GlobalAveragePool (a)  f = Flatten (p)  y = MatMul (f, v) }"""


def gathered(draft, bench):
    parts = list(gather_moments(draft.exact, layers(draft.exact, draft.plan), bench))
    return {layer.name: found for part in parts for layer, found in part}, len(parts)


def all_rows(draft, bench, layer):
    """Of every sample, at every place."""
    node = draft.exact.graph.node(layer.name)

    def look(number, arrays):
        return patches(node, arrays[layer.data.tensor], 10**6, np.random.default_rng(0))

    rows = np.concatenate(list(bench.watch(draft.exact, [layer.data.tensor], look)))
    return rows.transpose(1, 0, 2).astype(np.float64)  # [G, n, K]


@pytest.mark.parametrize("text", [CHAIN, DEPTHWISE], ids=["chain", "depthwise"])
def test_moments_are_the_mean_of_products_of_rows(text, monkeypatch):
    monkeypatch.setattr(moments, "FEWEST", 10**6)
    draft, bench = bench_for(text)
    found, parts = gathered(draft, bench)
    assert parts == 1
    for layer in layers(draft.exact, draft.plan):
        rows = all_rows(draft, bench, layer)
        expected = rows.transpose(0, 2, 1) @ rows / rows.shape[1]
        assert found[layer.name].rows == rows.shape[1]
        np.testing.assert_allclose(found[layer.name].second, expected, rtol=1e-3, atol=1e-4)


def test_the_same_samples_give_the_same_bits_on_any_number_of_threads():
    draft, bench = bench_for()
    one, other = (gathered(draft, replace(bench, threads=threads))[0] for threads in (1, 3))
    assert all(np.array_equal(one[name].second, other[name].second) for name in one)
    seeded = gathered(draft, replace(bench, seed=1))[0]
    assert any(not np.array_equal(one[name].second, seeded[name].second) for name in one)


def test_what_does_not_fit_in_memory_together_is_gathered_apart(monkeypatch):
    draft, bench = bench_for()
    together, _ = gathered(draft, bench)
    monkeypatch.setattr(moments, "MOST_BYTES", 4 * 72 * 72)
    apart, parts = gathered(draft, bench)
    assert parts > 1
    assert list(apart) == list(together)
    assert all(apart[name].second.shape == together[name].second.shape for name in apart)


def test_of_a_huge_layer_only_blocks_along_the_diagonal_are_kept(monkeypatch):
    monkeypatch.setattr(moments, "FEWEST", 10**6)
    draft, bench = bench_for()
    (whole,) = (m.second for name, m in gathered(draft, bench)[0].items() if name == "Conv_c")
    limit = 4 * 72 * 10
    monkeypatch.setattr(moments, "MOST_BYTES", limit)
    (blocks,) = (m.second for name, m in gathered(draft, bench)[0].items() if name == "Conv_c")
    count, width, _ = blocks.shape
    assert count > 1
    assert blocks.nbytes <= 1.25 * limit, "the last one is filled up"
    for number, block in enumerate(blocks):
        start, end = number * width, min((number + 1) * width, 72)
        np.testing.assert_allclose(
            block[: end - start, : end - start], whole[0, start:end, start:end], rtol=1e-4
        )
        assert not block[end - start :].any()


def test_infinities_are_passed_over():
    text = "g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { a = Abs (x)  y = MatMul (a, w) }"
    draft, bench = bench_for(text)
    fit = [Sample("zeros", {"x": np.array([[1, np.inf, -2, -np.inf]], np.float32)})]
    (found,) = gathered(draft, replace(bench, fit=fit))[0].values()
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
