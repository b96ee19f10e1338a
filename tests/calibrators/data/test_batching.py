"""Samples joined to batches, and cut to the batch size that a model fixes."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrators.data.batching import batches, cut, parts
from calibrators.data.samples import InputSpec, Sample
from calibrators.errors import CalibrationError

FREE = (InputSpec("x", np.dtype("float32"), ("N", None)),)
FOUR = (InputSpec("x", np.dtype("float32"), (4, None)),)


def samples(*counts, width=2):
    start = 0
    for count in counts:
        values = np.arange(start, start + count, dtype=np.float32)
        yield Sample(f"s{start}", {"x": np.tile(values[:, None], width)}, count)
        start += count


def column(batch):
    return batch.feeds["x"][:, 0].tolist()


def test_neighbours_are_joined_to_the_batch_size():
    made = list(batches(samples(*[1] * 5), FREE, 2))
    assert [column(b) for b in made] == [[0, 1], [2, 3], [4]]
    assert [b.count for b in made] == [2, 2, 1]
    assert [b.name for b in made] == ["s0 to s1", "s2 to s3", "s4"]


def test_a_batch_that_comes_larger_stays_whole():
    assert [b.count for b in batches(samples(1, 5, 1, 1), FREE, 2)] == [1, 5, 2]


def test_only_equal_shapes_are_joined():
    mixed = [*samples(1, 1), *samples(1, width=3), *samples(1)]
    assert [b.feeds["x"].shape for b in batches(mixed, FREE, 8)] == [(2, 2), (1, 3), (1, 2)]


def test_samples_without_batch_axis_are_never_joined():
    alone = [Sample(str(i), {"x": np.zeros((3, 2), np.float32)}, joinable=False) for i in range(3)]
    assert list(batches(alone, FREE, 8)) == alone


def test_an_input_without_batch_axis_is_shared_or_parts_the_batches():
    inputs = (*FREE, InputSpec("k", np.dtype("int64"), ()))
    rows = [
        Sample(str(i), {"x": np.zeros((1, 2), np.float32), "k": np.array(k)}) for i, k in enumerate([7, 7, 8])
    ]
    made = list(batches(rows, inputs, 8))
    assert [(b.feeds["x"].shape[0], int(b.feeds["k"])) for b in made] == [(2, 7), (1, 8)]


def test_a_fixed_batch_size_wins_and_leftovers_are_left_out(caplog):
    with caplog.at_level(logging.INFO):
        made = list(batches(samples(*[1] * 10), FOUR, 1))
    assert [column(b) for b in made] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "fixes the batch size to 4: the last 2 samples do not fill a batch and are left out" in caplog.text


def test_a_fixed_batch_size_cuts_larger_batches():
    assert [column(b) for b in batches(samples(6, 2), FOUR, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_too_few_samples_are_repeated_to_fill(caplog):
    (batch,) = batches(samples(3), FOUR, 4)
    assert column(batch) == [0, 1, 2, 0]
    assert batch.count == 3
    assert "repeated" in caplog.text


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_a_batch_size_that_no_memory_holds_is_refused(size):
    huge = (InputSpec("x", np.dtype("float32"), (size, None)),)
    with pytest.raises(CalibrationError, match=f"fixes the batch size to {size}"):
        list(batches(samples(3), huge, 4))


def test_no_shape_is_lost_when_the_batch_size_is_fixed():
    made = list(batches([*samples(4), *samples(2, width=3), *samples(4)], FOUR, 4))
    assert [b.feeds["x"].shape for b in made] == [(4, 2), (4, 3), (4, 2)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 7))
def test_nothing_is_lost_nor_reordered(counts, size):
    made = list(batches(samples(*counts), FREE, size))
    assert [v for b in made for v in column(b)] == list(range(sum(counts)))
    assert all(b.count <= max(size, *counts) for b in made)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_fixed_batches_are_exact_and_in_order(counts):
    made = list(batches(samples(*counts), FOUR, 1))
    total = sum(counts)
    assert {b.feeds["x"].shape[0] for b in made} == {4}
    if total >= 4:
        assert [v for b in made for v in column(b)] == list(range(total - total % 4))


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(CalibrationError, match="batch size 0"):
        batches([], FREE, 0)


def test_a_batch_knows_the_samples_that_it_was_joined_from():
    joined = next(batches(samples(1, 2, 1), FREE, 4))
    assert joined.members == ("s0", "s1, sample 0", "s1, sample 1", "s3")
    assert [part.name for part in parts(joined, FREE)] == list(joined.members)
    assert [column(part) for part in parts(joined, FREE)] == [[0], [1], [2], [3]]
    assert cut(joined, frozenset("x"), 1, 3).members == ("s1, sample 0", "s1, sample 1")


def test_what_cannot_be_cut_is_its_only_part():
    alone = Sample("s", {"x": np.zeros((3, 2), np.float32)}, joinable=False)
    assert parts(alone, FREE) == [alone]
    fixed = Sample("s", {"x": np.zeros((4, 2), np.float32)}, 4)
    assert parts(fixed, FOUR) == [fixed]
    torn = Sample("s", {"x": np.zeros((3, 2), np.float32)}, 2)
    assert parts(torn, FREE) == [torn]
