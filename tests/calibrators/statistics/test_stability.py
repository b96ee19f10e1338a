"""How a range came about: growth over the last quarter, and the sample that alone made it so wide."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrators.statistics import TensorStatistics
from calibrators.statistics.sample_extremes import LENGTH
from calibrators.statistics.stability import ALONE, FEWEST, GREW, Stability, run_stability, stability
from calibrators.statistics.tensor import Extreme

ends = st.floats(-(2.0**100), 2.0**100, width=32)
ranges = st.lists(st.tuples(ends, ends).map(sorted), min_size=FEWEST, max_size=40)


def seen(*samples, name="sample {}"):
    """Statistics of samples, each a list of values."""
    statistics = TensorStatistics()
    for number, values in enumerate(samples):
        statistics.update(
            np.array([values], np.float32), name_of=lambda _, number=number: name.format(number)
        )
    return statistics


def width(samples):
    return max(0, *(high for _, high in samples)) - min(0, *(low for low, _ in samples))


def test_the_last_quarter_counts():
    known = stability(seen([-1, 1], [0, 2], [-1, 0], [0, 1], [0, 2], [-2, 1], [0, 1], [-1, 4]))
    assert known.growth == pytest.approx(1 - (2 + 2) / (2 + 4))  # the last two are the last quarter
    assert (known.low, known.high) == (Extreme(-2, 5, "sample 5"), Extreme(4, 7, "sample 7"))
    assert known.setter == known.high
    assert known.alone == pytest.approx(1 - (2 + 2) / (2 + 4))


def test_of_a_symmetric_range_only_the_farther_end_counts():
    samples = [[-1, 8], [0, 2], [-1, 0], [0, 1], [0, 2], [-2, 1], [0, 1], [-7, 4]]
    assert stability(seen(*samples)).growth == pytest.approx(1 - 10 / 15)
    known = stability(seen(*samples), symmetric=True)
    assert (known.growth, known.low, known.setter) == (0, None, Extreme(8, 0, "sample 0"))
    assert known.alone == pytest.approx(1 / 8)
    mirrored = stability(seen(*[[-high, -low] for low, high in samples]), symmetric=True)
    assert mirrored == replace(known, low=Extreme(-8, 0, "sample 0"), high=None, setter=mirrored.low)


def test_of_a_symmetric_range_samples_without_finite_values_are_none_either():
    values = [[1.0], [np.nan], [-2.0], [np.inf], [3.0], [np.nan], [2.0]]
    assert stability(seen(*values), symmetric=True).growth is None
    assert stability(seen(*values, [-4.0]), symmetric=True).growth == pytest.approx(1 / 4)


def test_the_sample_that_sets_both_ends_is_taken_away_from_both():
    known = stability(seen([-1, 1], [-9, 9], [-1, 1], [-1, 1], [-1, 1]))
    assert known.alone == pytest.approx(1 - 2 / 18)
    assert known.setter is not None
    assert known.setter.number == 1
    assert known.growth == 0


@given(ranges)
def test_it_is_what_its_words_say(samples):
    known, whole = stability(seen(*samples)), width(samples)
    early = samples[: len(samples) - len(samples) // 4]
    without = [width(samples[:i] + samples[i + 1 :]) for i in range(len(samples))]
    assert known.growth == pytest.approx(1 - width(early) / whole if whole else 0)
    assert known.alone == pytest.approx(1 - min(without) / whole if whole else 0)
    assert 0 <= known.growth <= 1


@given(ranges, st.permutations(range(8)))
def test_order_matters_to_growth_only(samples, order):
    samples = (samples * 8)[:8]
    one, other = stability(seen(*samples)), stability(seen(*(samples[i] for i in order)))
    assert one.alone == pytest.approx(other.alone)


@given(ranges, st.floats(0, 1e3), st.floats(0, 1e3))
def test_what_lies_outside_the_range_makes_no_difference(samples, below, above):
    cut = [[min(max(end, -below), above) for end in sample] for sample in samples]
    known, expected = stability(seen(*samples).clipped(-below, above)), stability(seen(*cut))
    assert known.growth == pytest.approx(expected.growth, abs=1e-6)
    assert known.alone == pytest.approx(expected.alone, abs=1e-6)


def test_a_tensor_after_relu6_is_settled_when_two_samples_reach_its_bound():
    known = stability(seen([0, 3], [0, 9], [0, 2], [0, 7], [0, 99]).clipped(0, 6))
    assert (known.growth, known.alone) == (0, 0)
    assert (known.low, known.high, known.setter) == (None, None, None)


@pytest.mark.parametrize("count", range(FEWEST))
def test_of_few_samples_nothing_is_said(count):
    known = stability(seen(*[[i + 1.0] for i in range(count)]))
    assert (known.growth, known.alone, known.setter) == (None, None, None)
    assert (known.high is None) == (count == 0)


def test_samples_without_finite_values_are_no_samples():
    values = [[1.0], [np.nan], [2.0], [np.inf], [3.0], [np.nan], [2.0]]
    assert stability(seen(*values)).growth is None
    known = stability(seen(*values, [4.0]))
    assert known.growth == pytest.approx(1 / 4)
    assert (known.high, known.alone) == (Extreme(4, 7, "sample 7"), pytest.approx(1 / 4))


def test_a_range_of_zero_neither_grows_nor_has_one_who_set_it():
    assert stability(seen(*[[0.0]] * 8)) == Stability(0, None, None, None, 0)


def test_of_so_many_samples_that_they_are_kept_in_pairs_only_growth_is_known():
    statistics = TensorStatistics()
    statistics.update(np.linspace(1, 2, LENGTH + 1, dtype=np.float32)[:, None], LENGTH + 1)
    known = stability(statistics)
    assert known.growth == pytest.approx(1 / 8, rel=1e-2)
    assert (known.setter, known.alone) == (None, None)
    assert known.high.number == LENGTH


# --- the run as a whole ---------------------------------------------------------------------------


def of(growth, alone=0.0, name="a.jpg", number=3):
    end = Extreme(1.0, number, name)
    return Stability(growth, None, end, end, alone)


def test_a_run_that_is_settled():
    whole = run_stability(
        {"x": of(GREW, ALONE), "y": of(0.0), "z": replace(of(0.0), growth=None, setter=None)}
    )
    assert (whole.assessed, whole.grown, whole.outliers) == (2, (), {})
    (sentence,) = whole.sentences
    assert sentence.startswith("settled")


def test_a_run_that_is_not():
    tensors = {"x": of(0.2), "y": of(0.3, 0.4), "z": of(0.0, 0.5), "w": of(0.0, 0.9, "b.jpg")}
    whole = run_stability(tensors)
    assert whole.grown == ("y", "x")
    assert whole.outliers == {"a.jpg": ("y", "z"), "b.jpg": ("w",)}
    more, outlier = whole.sentences
    assert "2 of 4 tensors" in more
    assert "more samples" in more
    assert "without a.jpg alone" in outlier
    assert "2 tensors" in outlier


def test_a_sample_without_a_name_goes_by_its_number():
    assert list(run_stability({"x": of(0.0, 0.5, "")}).outliers) == ["sample 4"]


@pytest.mark.parametrize("tensors", [{}, {"x": Stability(None, None, None)}])
def test_a_run_of_which_nothing_is_known(tensors):
    (sentence,) = run_stability(tensors).sentences
    assert str(FEWEST) in sentence
