"""The grid of E4M3 against the type itself, and the integrals of its rounding error."""

import ml_dtypes
import numpy as np
import pytest

from calibrators.grid import E4M3, Grid
from calibrators.methods import CALIBRATORS
from calibrators.methods.mse import Density, squared_errors
from calibrators.statistics import TensorStatistics

FP8 = Grid(-448, 448, symmetric=True, floating=E4M3)

NUMBERS = np.arange(127).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
"""All numbers of E4M3 from 0 to 448."""


def halves():
    """The numbers, the middles between them, and their float32 neighbours, of both signs."""
    middles = (NUMBERS[1:] + NUMBERS[:-1]) / 2
    points = np.concatenate([NUMBERS, middles]).astype(np.float32)
    beside = [np.nextafter(points, np.float32(end)) for end in (-np.inf, np.inf)]
    points = np.concatenate([points, *beside])
    return np.concatenate([points, -points]).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_that_of_the_type(dtype):
    values = halves().astype(dtype)
    expected = values.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(dtype)
    rounded = FP8.rounded(values).clip(-448, 448)
    assert rounded.dtype == dtype
    np.testing.assert_array_equal(rounded, expected)


def test_neighbours_lie_a_spacing_apart():
    np.testing.assert_array_equal(FP8.spacing(NUMBERS[:-1]), np.diff(NUMBERS))
    assert FP8.spacing(np.zeros(1)) == 2.0**-9
    assert Grid(-128, 127, symmetric=True).spacing(np.array([3.0])) == 1


def test_the_cubed_gaps_are_summed():
    gaps = FP8.cubed_gaps(NUMBERS)
    np.testing.assert_allclose(gaps[1:], np.cumsum(np.diff(NUMBERS) ** 3))
    np.testing.assert_array_equal(FP8.cubed_gaps(-NUMBERS), -gaps)


def seen(values):
    statistics = TensorStatistics()
    statistics.update(np.asarray(values, np.float32))
    return statistics


def error(values, threshold):
    scale = threshold / 448
    rounded = (values / scale).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    return np.square(values - rounded).sum()


def test_the_error_of_a_histogram_is_that_of_its_values():
    values = np.random.default_rng(0).normal(size=200_000)
    density, thresholds = Density.of(seen(values)), np.array([2.0, 3.0, 5.0, 8.0])
    found = squared_errors(density, FP8, -thresholds, thresholds)
    np.testing.assert_allclose(found, [error(values, one) for one in thresholds], rtol=0.02)


DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=100_000),
    "relu": lambda rng: np.maximum(rng.normal(size=100_000), 0),
    "laplace": lambda rng: rng.laplace(size=100_000),
    "outliers": lambda rng: np.concatenate([rng.normal(size=100_000), rng.normal(size=20) * 50]),
    "nearly constant": lambda rng: 1.1 + 0.02 * rng.normal(size=100_000),
    "uniform": lambda rng: rng.uniform(-1, 1, size=100_000),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("method", ["mse", "auto"])
def test_the_search_beats_rules(name, method):
    """NVIDIA's rules map the largest value to 448, or to 36."""
    values = DISTRIBUTIONS[name](np.random.default_rng(1)).astype(np.float32).astype(np.float64)
    low, high = CALIBRATORS[method](seen(values), FP8)
    largest = np.abs(values).max()
    found = error(values, max(-low, high))
    assert found <= 1.001 * min(error(values, largest), error(values, largest * 448 / 36))


def test_a_search_gains_where_values_lie_close_together():
    """With the largest value at 448, most values lie just above 256, where numbers are 32 apart."""
    rng = np.random.default_rng(1)
    values = np.concatenate([1.1 + 0.02 * rng.normal(size=100_000), rng.uniform(1, 1.7, size=1000)])
    low, high = CALIBRATORS["mse"](seen(values), FP8)
    assert error(values, max(-low, high)) < 0.8 * error(values, np.abs(values).max())


def test_a_range_may_be_wider_than_the_values_by_less_than_two():
    values = DISTRIBUTIONS["nearly constant"](np.random.default_rng(1))
    low, high = CALIBRATORS["auto"](seen(values), FP8)
    assert 0 < high <= 2 * values.max()
    assert low <= high


def test_minmax_is_the_whole_range():
    assert CALIBRATORS["minmax"](seen([-3.0, 2.0]), FP8) == (-3.0, 2.0)


def test_the_divergence_of_buckets_has_no_meaning():
    with pytest.raises(Exception, match="entropy compares evenly wide buckets"):
        CALIBRATORS["entropy"](seen([-3.0, 2.0]), FP8)
