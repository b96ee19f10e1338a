"""Statistics are exact: no split, order or merge of the data changes a bit of them."""

from __future__ import annotations

import functools
import json
import math
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibrators import archive
from calibrators.errors import CalibrationError
from calibrators.histogram import SIDE, Histogram, exponent_of
from calibrators.moving_range import MovingRange
from calibrators.statistics import Statistics, TensorStatistics

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TINY = float(np.finfo(np.float32).smallest_subnormal)


def of(*arrays: np.ndarray) -> TensorStatistics:
    tensor = TensorStatistics()
    for array in arrays:
        tensor.update(array)
    return tensor


def exact(tensor: TensorStatistics) -> tuple[object, ...]:
    """All that must not depend on batches and order, bit by bit."""
    return (
        np.float64(tensor.low).tobytes(),
        np.float64(tensor.high).tobytes(),
        tensor.count,
        tensor.nonfinite,
        tensor.histogram.exponent,
        tensor.histogram.counts.dtype,
        tensor.histogram.counts.tobytes(),
    )


def counted(values: np.ndarray) -> Histogram:
    """The definition, in a loop: bin j holds j * w <= x < (j + 1) * w."""
    histogram = Histogram(exponent_of(float(np.abs(values).max())))
    for value in values:
        histogram.counts[SIDE + math.floor(float(value) / histogram.width)] += 1
    return histogram


@st.composite
def mixed_arrays(draw):
    """Values of very different magnitudes, many of them at the borders of bins."""
    plain = draw(hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS))
    borders = draw(
        st.lists(
            st.tuples(
                st.sampled_from([-1, 1]),
                st.integers(0, 2 * SIDE),
                st.integers(-149, 100),
                st.integers(-1, 1),
            ),
            max_size=40,
        )
    )
    with np.errstate(over="ignore", under="ignore"):
        edges = [np.float32(sign * np.ldexp(float(j), e)) for sign, j, e, _ in borders]
        near = [
            np.nextafter(x, np.float32(side * np.inf)) if side else x
            for x, (*_, side) in zip(edges, borders, strict=True)
        ]
    special = draw(st.lists(st.sampled_from([0.0, -0.0, TINY, -TINY, 3e38, -3e38]), max_size=5))
    values = np.concatenate([plain, np.array([*near, *special], np.float32)])
    return values[np.isfinite(values)]


@given(mixed_arrays().filter(len))
def test_the_histogram_is_what_its_definition_says(values):
    histogram = of(values).histogram
    expected = counted(values)
    assert histogram.exponent == expected.exponent
    np.testing.assert_array_equal(histogram.counts, expected.counts)


@given(mixed_arrays(), st.lists(st.integers(0, 90), max_size=5), st.randoms(use_true_random=False))
def test_any_split_order_and_merge_gives_the_same_bits(values, cuts, rng: random.Random):
    whole = exact(of(values))
    parts = np.split(values, sorted(cut for cut in cuts if cut <= len(values)))
    assert exact(of(*parts)) == whole
    rng.shuffle(parts)
    assert exact(of(*parts)) == whole
    assert exact(functools.reduce(TensorStatistics.merge, map(of, parts))) == whole
    assert exact(functools.reduce(TensorStatistics.join, map(of, parts))) == whole
    shuffled = values.copy()
    np.random.default_rng(rng.randrange(1000)).shuffle(shuffled)
    assert exact(of(shuffled)) == whole


@given(mixed_arrays())
def test_every_finite_value_is_counted_once(values):
    tensor = of(values)
    assert tensor.histogram.counts.sum() == tensor.count == values.size
    if values.size:
        assert tensor.low == values.min()
        assert tensor.high == values.max()


def test_the_width_uses_at_least_half_the_bins_of_a_side():
    for magnitude in (1e-30, 0.75, 1.0, 1.5, 6.0, 255.0, 1e30):
        used = np.flatnonzero(of(np.array([magnitude], np.float32)).histogram.counts)[0] - SIDE
        assert SIDE // 2 <= used < SIDE


def test_tiny_negative_values_stay_left_of_zero_beside_large_ones():
    tensor = of(np.array([-1e-30, -TINY, 1e-30, 0.0, -0.0, 4e6], np.float32))
    assert tensor.histogram.counts[SIDE - 1] == 2
    assert tensor.histogram.counts[SIDE] == 3


def test_a_huge_range_is_folded_at_once():
    tensor = of(np.array([TINY, -TINY], np.float32), np.array([3e38], np.float32))
    assert exact(tensor) == exact(of(np.array([3e38, TINY, -TINY], np.float32)))


@pytest.mark.parametrize("value", [0.0, -0.0, TINY, -TINY, 5.0, -5.0, 2.0**127, -(2.0**-130)])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_constant_tensors(value, shape):
    tensor = of(np.full(shape, value, np.float32))
    assert (tensor.low, tensor.high) == (value, value)
    assert tensor.count == tensor.histogram.counts.max() == math.prod(shape)
    assert math.copysign(1, tensor.low) == (1 if value == 0 else math.copysign(1, value))


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_])
def test_number_types(kind):
    values = np.array([[0, 1, 1], [0, 1, 0]]).astype(kind)
    assert exact(of(values)) == exact(of(values.astype(np.float32)))


def test_views_count_like_copies():
    values = np.arange(-60, 60, dtype=np.float32).reshape(10, 12)
    assert exact(of(values.T[::2])) == exact(of(values.T[::2].copy()))


def test_text_is_refused():
    with pytest.raises(TypeError, match="real numbers"):
        of(np.array(["a"]))


def test_empty_arrays_count_as_samples_only():
    tensor = of(np.empty((0, 4), np.float32))
    assert (tensor.samples, tensor.count, tensor.low, tensor.high) == (1, 0, math.inf, -math.inf)
    assert tensor.moving.batches == 0


def test_nan_and_infinity_are_left_out_and_counted():
    tensor = of(np.array([1, np.nan, -2, np.inf, -np.inf], np.float32))
    clean = of(np.array([1, -2], np.float32))
    assert tensor.nonfinite == 3
    tensor.nonfinite = 0
    assert exact(tensor) == exact(clean)


def test_doubles_beyond_float32_count_as_infinite():
    tensor = of(np.array([1e300, 1.0]))
    assert (tensor.nonfinite, tensor.high) == (1, 1.0)


def test_nothing_finite():
    tensor = of(np.array([np.nan, np.inf], np.float32))
    assert (tensor.count, tensor.nonfinite, tensor.moving.batches) == (0, 2, 0)
    with pytest.raises(CalibrationError, match="no finite value"):
        tensor.require_data()


def test_update_needs_no_copy_of_the_array():
    values = np.zeros(4_000_000, np.float32)
    values[0] = -1
    tensor = TensorStatistics()
    tracemalloc.start()
    tensor.update(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < values.nbytes / 2


# The moving average


def moving(pairs) -> MovingRange:
    return functools.reduce(MovingRange.followed_by, (MovingRange(p, p, 1) for p in pairs), MovingRange())


RANGES = st.lists(st.tuples(st.floats(-1e3, 0), st.floats(0, 1e3)), max_size=30)


@given(RANGES.filter(len))
def test_the_moving_average_follows_its_formula(pairs):
    low, high = pairs[0]
    for x_low, x_high in pairs[1:]:
        low, high = 0.9 * low + 0.1 * x_low, 0.9 * high + 0.1 * x_high
    assert moving(pairs).value == pytest.approx((low, high), abs=1e-9)


@given(RANGES, RANGES)
def test_merged_moving_averages_are_those_of_one_stream(one, two):
    merged, whole = moving(one).followed_by(moving(two)), moving(one + two)
    assert merged.batches == whole.batches
    assert merged.first == whole.first
    assert merged.value == pytest.approx(whole.value, abs=1e-9)


def test_tensors_that_share_a_range_do_not_fade_into_each_other():
    wide, narrow = of(*[np.array([-10.0, 10.0], np.float32)] * 100), of(*[np.ones(3, np.float32)] * 100)
    for joined in (wide.join(narrow), narrow.join(wide)):
        assert joined.moving.value == pytest.approx((-10, 10))
        assert joined.samples == 100
    assert wide.merge(narrow).samples == 200
    assert TensorStatistics().join(narrow).moving == narrow.moving
    assert narrow.join(TensorStatistics()).moving == narrow.moving


# Many tensors, and the file


def some() -> Statistics:
    rng = np.random.default_rng(0)
    tensors = {
        "a/b:0": of(rng.standard_normal((2, 3)), rng.standard_normal(50)),
        "ü": of(np.zeros(4)),
        "empty": of(np.empty(0)),
        "bad": of(np.array([np.nan, 1.0])),
    }
    return Statistics(tensors, samples=2)


def same(one: Statistics, two: Statistics) -> bool:
    return (
        list(one) == list(two)
        and one.samples == two.samples
        and all(
            exact(one[n]) == exact(two[n])
            and one[n].moving == two[n].moving
            and one[n].samples == two[n].samples
            for n in one
        )
    )


def test_save_and_load(tmp_path):
    statistics = some()
    statistics.save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    assert same(loaded, statistics)
    assert loaded.unseen == ("empty",)
    assert same(loaded.merge(loaded), statistics.merge(statistics))
    loaded["ü"].update(np.ones(3))
    assert loaded["ü"].count == 7


def test_the_same_statistics_give_the_same_file(tmp_path):
    some().save(tmp_path / "one.npz")
    some().save(str(tmp_path / "two.npz"))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_no_tensors_at_all(tmp_path):
    Statistics({}, 3).save(tmp_path / "s")
    assert same(Statistics.load(tmp_path / "s"), Statistics({}, 3))


def test_merging_different_tensors_is_refused():
    with pytest.raises(CalibrationError, match="only one of the two has ü"):
        Statistics({"ü": of(np.ones(1))}, 1).merge(Statistics({}, 1))


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "s.npz"
    path.write_text("precious")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(CalibrationError, match=r"s\.npz: No space left"):
        some().save(path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CalibrationError, match="cannot be written"):
        some().save(tmp_path / "no" / "s.npz")


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(CalibrationError, match=r"cannot be read from .*gone\.npz"):
        Statistics.load(tmp_path / "gone.npz")


def _plain_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def _other_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.ones(3))


def _other_header(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, header=np.frombuffer(json.dumps([1]).encode(), np.uint8))


def _truncated(path: Path) -> None:
    some().save(path)
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path: Path) -> None:
    some().save(path)
    data = bytearray(path.read_bytes())
    middle = data.index(b"counts.npy") + 40
    data[middle : middle + 20] = bytes(20)
    path.write_bytes(data)


def _text(path: Path) -> None:
    path.write_text("hello")


@pytest.mark.parametrize("damage", [_plain_npy, _other_npz, _other_header, _truncated, _flipped, _text])
def test_other_and_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "s.npz"
    damage(path)
    with pytest.raises(CalibrationError, match=r"s\.npz (does not hold|is damaged)"):
        Statistics.load(path)


def _rewritten(path: Path, header: dict | None = None, **columns) -> None:
    some().save(path)
    old_header, old_columns = archive.read(path)
    archive.write(path, {**old_header, **(header or {})}, {**old_columns, **columns})


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ({"tensors": ["a"]}, {}),
        ({"tensors": 3}, {}),
        ({"samples": None}, {}),
        ({}, {"low": np.ones(3)}),
        ({}, {"low": np.array(["x"] * 4)}),
        ({}, {"low": np.full(4, np.nan)}),
        ({}, {"counts": np.ones((4, 2 * SIDE), np.int64)}),
        ({}, {"counts": np.ones((4, 5), np.int64)}),
    ],
)
def test_columns_that_do_not_fit_are_damage(tmp_path, header, columns):
    path = tmp_path / "s.npz"
    _rewritten(path, header, **columns)
    with pytest.raises(CalibrationError, match="damaged"):
        Statistics.load(path)


def test_another_version_is_named(tmp_path):
    path = tmp_path / "s.npz"
    _rewritten(path, {"version": 99})
    with pytest.raises(CalibrationError, match="version 99, expected 1"):
        Statistics.load(path)


@given(
    values=hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-100, 100, width=32)),
    low=st.sampled_from([-np.inf, -50.0, -3.0, -0.125, 0.0]),
    high=st.sampled_from([np.inf, 50.0, 6.0, 0.125, 0.0]),
)
def test_clipped_statistics_are_those_of_clipped_values(values, low, high):
    raw, expected = TensorStatistics(), TensorStatistics()
    raw.update(values)
    expected.update(np.clip(values, low, high))
    clipped = raw.clipped(low, high)
    assert (clipped.low, clipped.high) == (expected.low, expected.high)
    counts = clipped.histogram.counts
    assert counts.sum() == clipped.count == values.size
    edges = (np.arange(2 * SIDE + 1) - SIDE) * clipped.histogram.width
    used = np.flatnonzero(counts)
    assert edges[used[0]] <= clipped.low <= edges[used[0] + 1]
    assert edges[used[-1]] <= clipped.high <= edges[used[-1] + 1]
    finer = expected.histogram
    finer.widen(clipped.histogram.exponent)
    inner = slice(used[0] + 1, used[-1])
    np.testing.assert_array_equal(counts[inner], finer.counts[inner])
