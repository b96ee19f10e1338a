"""Batches that are counted together give the same statistics as one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.statistics import Statistics, TensorStatistics
from calibrators.statistics.folding import Folding


def batches(shapes, dtype=np.float32):
    rng = np.random.default_rng(len(shapes))
    first = 0
    for index, shape in enumerate(shapes):
        count = shape[0]
        numbers = tuple(range(first, first + count))
        yield Sample(f"b{index}", {}, count, numbers=numbers), rng.standard_normal(shape).astype(dtype)
        first += count


def saved(tensor, file):
    Statistics({"t": tensor}, tensor.samples).save(file)
    return file.read_bytes()


@pytest.mark.parametrize("selection", [None, 300])
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 5)] * 9,
        [(2, 7, 40)] * 5,
        [(1, 3, 2000)] * 3,
        [(1, 6), (1, 6), (1, 9), (3, 9), (1, 9), (1, 6)],
    ],
    ids=str,
)
def test_the_same_bytes_as_one_by_one(shapes, selection, tmp_path):
    together, apart = TensorStatistics(), TensorStatistics()
    folding = Folding("t", selection)
    observed = list(batches(shapes))
    assert folding.fold(observed, together) is None
    for each in observed:
        assert folding.fold([each], apart) is None
    assert saved(together, tmp_path / "a.npz") == saved(apart, tmp_path / "b.npz")
    assert together.highest == apart.highest
    assert together.highest.name.startswith("b")


def test_the_first_sample_of_an_extreme_is_that_of_the_least_number():
    observed = [(Sample(f"s{n}", {}, numbers=(n,)), np.full((1, 2), 3, np.float32)) for n in (5, 2, 7)]
    tensor = TensorStatistics()
    Folding("t").fold(observed, tensor)
    assert tensor.lowest.name == tensor.highest.name == "s2"


def test_channel_means_too():
    together, apart = TensorStatistics(), TensorStatistics()
    observed = list(batches([(1, 4, 30)] * 6))
    Folding("t", channel_axis=1).fold(observed, together)
    for each in observed:
        Folding("t", channel_axis=1).fold([each], apart)
    np.testing.assert_array_equal(together.channels.value, apart.channels.value)


def test_values_that_all_samples_share_are_not_rows():
    """An array of one row for three samples counts three times; it is not joined."""
    tensor = TensorStatistics()
    observed = [
        (Sample("a", {}, 3, numbers=(0, 1, 2)), np.ones((1, 2), np.float32)),
        (Sample("b", {}, 1, numbers=(3,)), np.ones((1, 2), np.float32)),
        (Sample("c", {}, 1, numbers=(4,)), np.array(7, np.float32)),
    ]
    Folding("t").fold(observed, tensor)
    assert (tensor.samples, tensor.count, tensor.high) == (5, 9, 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_the_first_batch_with_a_value_that_is_not_finite_is_named(bad):
    observed = list(batches([(1, 5)] * 6, np.float64))
    observed[2][1][0, 1] = observed[4][1][0, :] = bad
    batch, count, size = Folding("t").fold(observed, TensorStatistics())
    assert (batch.name, count, size) == ("b2", 1, 5)


def test_what_is_no_tensor_is_an_error():
    sample = Sample("a", {}, numbers=(0,))
    with pytest.raises(CalibrationError, match="t cannot be observed: it is not a tensor but a list"):
        Folding("t").fold([(sample, [1, 2])], TensorStatistics())
    with pytest.raises(CalibrationError, match="t cannot be observed: expected real numbers"):
        Folding("t").fold([(sample, np.array(["a"]))], TensorStatistics())
