"""Statistics are exact: no split, order or merge of the data changes a bit of them."""

from __future__ import annotations

import functools
import io
import json
import math
import random
import tracemalloc
import zipfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibrators.errors import CalibrationError
from calibrators.statistics import Statistics, TensorStatistics, archive, batch_summary
from calibrators.statistics.batch_summary import digest
from calibrators.statistics.channel_means import ChannelMeans
from calibrators.statistics.exact_sum import ExactSum
from calibrators.statistics.histogram import SIDE, Histogram, exponent_of
from calibrators.statistics.sample_extremes import LENGTH, SampleExtremes
from calibrators.statistics.tensor import Extreme

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
    assert not tensor.trail.seen()[0].size


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
    assert (tensor.count, tensor.nonfinite, tensor.trail.seen()[0].size) == (0, 2, 0)
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


# Samples in batches


def exact_in_full(tensor: TensorStatistics) -> tuple[object, ...]:
    """Everything, bit by bit."""
    channels = tensor.channels
    return (
        *exact(tensor),
        tensor.lowest,
        tensor.highest,
        tensor.samples,
        tensor.trail,
        channels and (channels.axis, channels.sums.windows.tobytes(), channels.counts.tobytes()),
    )


def of_batches(samples: np.ndarray, batches: list[np.ndarray], **options) -> list[TensorStatistics]:
    """The statistics of each batch of neighbouring samples, given by their numbers."""
    found = []
    for numbers in batches:
        tensor = TensorStatistics()
        tensor.update(samples[numbers], len(numbers), number=int(numbers[0]), **options)
        found.append(tensor)
    return found


@st.composite
def samples_of_one_shape(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=7))
    seed, kind = draw(st.integers(0, 999)), draw(st.sampled_from(["normal", "wild", "ties", "bad"]))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == "wild":
        values *= (10.0 ** rng.integers(-37, 38, shape)).astype(np.float32)
    if kind == "ties":
        values = np.sign(values)
    if kind == "bad":
        values[rng.random(shape) < 0.2] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32))
    return values


@given(
    samples_of_one_shape(),
    st.lists(st.integers(1, 6), max_size=4),
    st.sampled_from([None, 3, 20]),
    st.data(),
)
def test_any_batches_in_any_order_give_the_same_bits(samples, cuts, selection, data):
    """Histogram, extremes and where they came from, trail, channel means: not a bit may differ."""
    axis = data.draw(st.sampled_from([None, *range(1, samples.ndim), -1]))
    options = {"selection": selection, "channel_axis": axis}
    numbers = np.arange(len(samples))
    batches = [part for part in np.split(numbers, sorted(c for c in cuts if c < len(samples))) if part.size]
    single = [numbers[i : i + 1] for i in numbers]
    with patch.object(batch_summary, "RANKS", 6):  # so that there is something to select from small samples
        whole = exact_in_full(of_batches(samples, [numbers], **options)[0])
        for order in (batches, batches[::-1], data.draw(st.permutations(batches)), single):
            parts = of_batches(samples, order, **options)
            assert exact_in_full(functools.reduce(TensorStatistics.merge, parts)) == whole
            one = TensorStatistics()
            for batch in order:
                one.update(samples[batch], len(batch), number=int(batch[0]), **options)
            assert exact_in_full(one) == whole


@given(samples_of_one_shape())
def test_a_selection_knows_all_extremes_and_bad_values(samples):
    full, picked = TensorStatistics(), TensorStatistics()
    full.update(samples, len(samples))
    with patch.object(batch_summary, "RANKS", 6):
        picked.update(samples, len(samples), selection=6)
    assert (picked.lowest, picked.highest) == (full.lowest, full.highest)
    assert picked.nonfinite == full.nonfinite
    assert picked.trail == full.trail
    if full.count:
        used, all_used = (np.flatnonzero(t.histogram.counts)[[0, -1]] for t in (picked, full))
        np.testing.assert_array_equal(used, all_used)


def test_a_batch_of_float16_is_split_alike():
    samples = np.random.default_rng(0).standard_normal((8, 16, 9, 9)).astype(np.float16)
    whole = of_batches(samples, [np.arange(8)], channel_axis=1)[0]
    parts = of_batches(samples, [np.array([i]) for i in range(8)], channel_axis=1)
    assert exact_in_full(functools.reduce(TensorStatistics.merge, parts)) == exact_in_full(whole)


def test_large_channels_last_tensors_are_split_alike():
    samples = np.random.default_rng(0).standard_normal((4, 130, 70, 24)).astype(np.float32)
    for axis in (1, 2, 3):
        whole = of_batches(samples, [np.arange(4)], channel_axis=axis)[0]
        parts = of_batches(samples, [np.array([i]) for i in range(4)], channel_axis=axis)
        assert exact_in_full(functools.reduce(TensorStatistics.merge, parts)) == exact_in_full(whole)


@given(samples_of_one_shape(), st.data())
def test_channel_means(samples, data):
    axis = data.draw(st.integers(1, samples.ndim - 1))
    tensor = of_batches(samples, [np.arange(len(samples))], channel_axis=axis)[0]
    others = tuple(i for i in range(samples.ndim) if i != axis)
    finite = np.isfinite(samples)
    count = finite.sum(axis=others)
    expected = np.where(finite, samples, 0).sum(axis=others, dtype=np.float64) / np.maximum(count, 1)
    scale = np.abs(np.where(finite, samples, 0)).max(axis=others)
    assert tensor.channels is not None
    np.testing.assert_array_less(np.abs(tensor.channels.value - expected), 1e-5 * scale + 1e-30)


@pytest.mark.parametrize("axis", [0, 2, -2, 7])
def test_an_axis_that_counts_no_channels(axis):
    with pytest.raises(ValueError, match=r"no axis .* in shape \[3, 4\]"):
        ChannelMeans.of(np.ones((3, 4), np.float32), axis)


def test_channels_that_change_are_refused():
    tensor = TensorStatistics()
    tensor.update(np.ones((2, 3)), 2, channel_axis=1)
    with pytest.raises(ValueError, match="3 channels in one batch, 4 in another"):
        tensor.update(np.ones((2, 4)), 2, channel_axis=1)


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=FLOATS), st.randoms(use_true_random=False))
def test_exact_sums_are_those_of_fsum(values, rng: random.Random):
    order = list(range(len(values)))
    rng.shuffle(order)
    one, two = ExactSum.zeros(1), ExactSum.zeros(1)
    one.add(values[:, None])
    for i in order:
        two.add(values[i : i + 1, None])
    np.testing.assert_array_equal(one.windows, two.windows)
    expected = math.fsum(map(float, values))
    assert one.value[0] == pytest.approx(expected, rel=1e-12, abs=1e-12 * float(np.abs(values).max()))


# A selection of the elements


def test_a_selection_stands_for_all_elements():
    rng = np.random.default_rng(0)
    values = np.maximum(rng.standard_normal((5, 64, 40, 40)), -0.5).astype(np.float32)
    values[3, 1, 2, 3] = 9.5
    full, picked = TensorStatistics(), TensorStatistics()
    full.update(values, 5)
    picked.update(values, 5, selection=16384)
    assert (picked.low, picked.high, picked.highest.number) == (-0.5, 9.5, 3)
    assert picked.trail == full.trail
    assert picked.count == pytest.approx(full.count, rel=1e-3)
    ours, theirs = (np.cumsum(t.histogram.counts) / t.count for t in (picked, full))
    assert np.abs(ours - theirs).max() < 0.005
    assert np.flatnonzero(picked.histogram.counts)[-1] == np.flatnonzero(full.histogram.counts)[-1]


@pytest.mark.parametrize("shape", [(64, 32, 32), (1000, 96), (32, 112, 112), (7, 7, 1280), (20001,)])
def test_a_selection_takes_from_every_channel_row_and_column(shape):
    for axis in range(len(shape)):
        values = np.broadcast_to(
            np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape
        )
        tensor = TensorStatistics()
        tensor.update(np.ascontiguousarray(values, np.float32)[None], 1, selection=16384)
        if math.prod(shape) > 16384:
            used = np.unique(np.floor(np.flatnonzero(tensor.histogram.counts) - SIDE))
            assert len(used) >= min(shape[axis], SIDE // 2)


@pytest.mark.parametrize(
    ("number", "share"), [(0, 8192), (31, 8192), (32, 4096), (64, 2048), (128, 1024), (10**6, 1024)]
)
def test_of_later_samples_fewer_elements_are_counted(number, share):
    values = np.random.default_rng(0).standard_normal((1, 200_000)).astype(np.float32)
    summary = digest(values, np.array([number]), 8192)
    (tails, once), (middle, stride) = summary.counted
    assert once == 1
    assert middle.size == pytest.approx(share, rel=0.15)
    assert tails.size + middle.size * stride == pytest.approx(values.size, rel=0.01)
    assert (summary.lows[0], summary.highs[0]) == (values.min(), values.max())


def test_the_selections_of_many_samples_stand_for_all_elements():
    values = np.random.default_rng(0).exponential(size=(150, 20_000)).astype(np.float32)
    full, picked = TensorStatistics(), TensorStatistics()
    full.update(values, 150)
    picked.update(values, 150, selection=8192)
    ours, theirs = (np.cumsum(t.histogram.counts) / t.count for t in (picked, full))
    assert np.abs(ours - theirs).max() < 0.005
    assert picked.trail == full.trail


def test_small_tensors_are_counted_in_full():
    values = np.random.default_rng(0).standard_normal((3, 1000))
    one, two = TensorStatistics(), TensorStatistics()
    one.update(values, 3)
    two.update(values, 3, selection=1000)
    assert exact_in_full(one) == exact_in_full(two)


# The trail


def trail(*pairs: tuple[float, float], first: int = 0) -> SampleExtremes:
    lows, highs = (np.array(ends, np.float32) for ends in zip(*pairs, strict=True))
    return SampleExtremes.of(first + np.arange(len(lows)), lows, highs)


def test_the_trail_keeps_the_extremes_of_each_sample():
    tensor = TensorStatistics()
    tensor.update(np.array([[1, 2], [-3, 5], [np.nan, np.inf]]), 3)
    tensor.update(np.array([[0.5, 0.25]]), 1)
    lows, highs = tensor.trail.seen()
    assert lows.tolist() == [1, -3, 0.25]
    assert highs.tolist() == [2, 5, 0.5]
    assert (tensor.lowest, tensor.highest) == (Extreme(-3, 1), Extreme(5, 1))


def test_a_long_trail_takes_neighbours_together():
    rng = np.random.default_rng(0)
    highs = rng.random(5 * LENGTH // 2).astype(np.float32)
    numbers = np.arange(len(highs))
    whole = SampleExtremes.of(numbers, -highs, highs)
    assert whole.block == 4
    np.testing.assert_array_equal(whole.highs, highs.reshape(-1, 4).max(axis=1))
    parts = [
        SampleExtremes.of(part, -highs[part], highs[part])
        for part in np.split(numbers, range(999, len(highs), 999))
    ]
    for order in (parts, parts[::-1]):
        assert functools.reduce(SampleExtremes.over, order) == whole


def test_samples_numbered_anew_come_later():
    one, two = trail((0, 1), (0, 2)), trail((-5, 0))
    both = one.over(two.later(2))
    assert both == trail((0, 1), (0, 2), (-5, 0))
    long = SampleExtremes.of(
        np.arange(LENGTH + 1), np.zeros(LENGTH + 1, np.float32), np.ones(LENGTH + 1, np.float32)
    )
    moved = long.later(LENGTH)
    assert moved.block == 4
    assert moved.highs[: LENGTH // 4].max() == -np.inf


def test_tensors_that_share_a_range_are_joined_sample_by_sample():
    wide, narrow = of(*[np.array([-10.0, 10.0])] * 100), of(*[np.ones(3)] * 100)
    for joined in (wide.join(narrow), narrow.join(wide)):
        assert (joined.trail.lows.max(), joined.trail.highs.min()) == (-10, 10)
        assert joined.samples == 100
    assert wide.merge(narrow).samples == 200
    assert TensorStatistics().join(narrow).trail == narrow.trail


# Many tensors, and the file


def some() -> Statistics:
    rng = np.random.default_rng(0)
    means = TensorStatistics()
    means.update(rng.standard_normal((2, 5, 3)), 2, name_of="picture{}.jpg".format, channel_axis=1)
    tensors = {
        "a/b:0": of(rng.standard_normal((2, 3)), rng.standard_normal(50)),
        "ü": of(np.zeros(4)),
        "empty": of(np.empty(0)),
        "bad": of(np.array([np.nan, 1.0])),
        "means": means,
    }
    return Statistics(tensors, samples=2, span=(3, 5), complete=False, fingerprint="abc")


def same(one: Statistics, two: Statistics) -> bool:
    return (
        list(one) == list(two)
        and (one.samples, one.span, one.complete, one.fingerprint)
        == (two.samples, two.span, two.complete, two.fingerprint)
        and all(exact_in_full(one[n]) == exact_in_full(two[n]) for n in one)
    )


def test_save_and_load(tmp_path):
    statistics = some()
    statistics.save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    assert same(loaded, statistics)
    assert loaded.unseen == ("empty",)
    assert not loaded.complete
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


def numbered(*numbers: int, **options) -> Statistics:
    """Of samples with these numbers; the value of each is its number."""
    tensor = TensorStatistics()
    for number in numbers:
        tensor.update(np.full((1, 3), number), 1, number=number)
    return Statistics({"x": tensor}, len(numbers), span=(numbers[0], numbers[-1] + 1), **options)


def test_parts_of_one_stream_merge_in_any_order():
    whole, parts = numbered(*range(6)), [numbered(0, 1), numbered(2, 3), numbered(4, 5)]
    for order in (parts, parts[::-1], [parts[1], parts[2], parts[0]]):
        assert same(functools.reduce(Statistics.merge, order), whole)
    assert not numbered(0).merge(numbered(1, complete=False)).complete


def test_streams_that_were_numbered_alike_follow_each_other():
    both = numbered(0, 1, 2).merge(numbered(0, 1))
    assert (both.samples, both.span) == (5, (0, 5))
    assert both["x"].trail.seen()[0].tolist() == [0, 1, 2, 0, 1]
    assert both["x"].highest.number == 2
    assert numbered(0).merge(numbered(0, 7))["x"].highest == Extreme(7, 8)


def test_merging_different_models_is_refused():
    with pytest.raises(CalibrationError, match="different models"):
        numbered(0, fingerprint="a").merge(numbered(1, fingerprint="b"))


def test_merging_different_channels_is_refused():
    def channels(n: int) -> Statistics:
        tensor = TensorStatistics()
        tensor.update(np.ones((1, n)), 1, channel_axis=1)
        return Statistics({"x": tensor}, 1)

    with pytest.raises(CalibrationError, match="3 channels in one batch, 4 in another"):
        channels(3).merge(channels(4))


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
    with np.load(path) as file:
        arrays = dict(file)
    old_header = json.loads(arrays.pop(archive.HEADER).tobytes())
    text = json.dumps({**old_header, **(header or {})})
    with path.open("wb") as file:
        np.savez(file, **{archive.HEADER: np.frombuffer(text.encode(), np.uint8), **arrays, **columns})


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ({"tensors": ["a"]}, {}),
        ({"tensors": 3}, {}),
        ({"samples": None}, {}),
        ({}, {"low": np.ones(3)}),
        ({}, {"low": np.array(["x"] * 5)}),
        ({}, {"low": np.full(5, np.nan)}),
        ({}, {"counts": np.ones((5, 2 * SIDE), np.int64)}),
        ({}, {"counts": np.ones((5, 5), np.int64)}),
        ({}, {"exponent": np.full(5, 500)}),
        ({}, {"entries": np.full(5, 9)}),
        ({}, {"entries": np.full(5, -1)}),
        ({}, {"block": np.zeros(5, np.int64)}),
        ({}, {"channels": np.full(5, 2)}),
        ({"span": [1]}, {}),
    ],
)
def test_columns_that_do_not_fit_are_damage(tmp_path, header, columns):
    path = tmp_path / "s.npz"
    _rewritten(path, header, **columns)
    with pytest.raises(CalibrationError, match="damaged"):
        Statistics.load(path)


@pytest.mark.parametrize("name", [archive.HEADER, "low", "low_name", "counts", "trail_lows", "extra"])
def test_what_a_file_unpacks_to_is_known_before(tmp_path, name):
    """64 MiB of zeros, packed to 64 kB, in place of an array, or beside the arrays."""
    path = tmp_path / "s.npz"
    some().save(path)
    with zipfile.ZipFile(path) as file:
        parts = {part: file.read(part) for part in file.namelist()}
    parts[f"{name}.npy"] = _npy(np.zeros(1 << 26, np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for part, content in parts.items():
            file.writestr(part, content)
    del parts
    tracemalloc.start()
    try:
        if name == "extra":
            assert Statistics.load(path).keys() == some().keys()
        else:
            with pytest.raises(CalibrationError, match=r"s\.npz (does not hold|is damaged)"):
                Statistics.load(path)
        assert tracemalloc.get_traced_memory()[1] < (1 << 24 if name != archive.HEADER else 1 << 28)
    finally:
        tracemalloc.stop()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("columns", [{"entries": np.full(5, 1 << 40)}, {"channels": np.full(5, 1 << 40)}])
def test_a_column_that_asks_for_too_much_is_damage(tmp_path, columns):
    path = tmp_path / "s.npz"
    _rewritten(path, **columns)
    with pytest.raises(CalibrationError, match="damaged"):
        Statistics.load(path)


def test_another_version_is_named(tmp_path):
    path = tmp_path / "s.npz"
    _rewritten(path, {"version": 99})
    with pytest.raises(CalibrationError, match="version 99, expected 2"):
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


# --- the batch size -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 3), (4, 3, 3), (1, 5), (), (12,)])
def test_batches_count_as_their_samples_do(shape):
    """Axis 0 may hold the rows of one sample after the other, and what has no axis of samples is each one's."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole, single = TensorStatistics(), TensorStatistics()
    whole.update(values, 4, number=[3, 5, 6, 9], name_of=lambda i: f"s{i}")
    parts = np.split(values, 4) if shape and shape[0] > 1 else [values] * 4
    for i, (part, number) in enumerate(zip(parts, [3, 5, 6, 9], strict=True)):
        single.update(part, 1, number=number, name_of=lambda _, i=i: f"s{i}")
    assert (whole.lowest, whole.highest, whole.count) == (single.lowest, single.highest, single.count)
    assert whole.trail == single.trail
    assert (whole.histogram.counts == single.histogram.counts).all()
