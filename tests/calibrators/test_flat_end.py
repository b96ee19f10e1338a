"""Where the range of a tensor that goes through SiLU or Gelu ends."""

import numpy as np
import pytest

from calibrators.grid import Grid
from calibrators.methods.flat_end import FUNCTIONS, useful_low
from calibrators.statistics import TensorStatistics

UINT8, INT8 = Grid(0, 255, symmetric=False), Grid(-127, 127, symmetric=True)


def seen(values):
    statistics = TensorStatistics()
    statistics.update(np.asarray(values, np.float32))
    return statistics


def error_behind(function, values, low, high):
    """Squared error behind the function with a range on 256 levels."""
    step = (high - low) / 255
    rounded = np.round(np.clip(values, low, high) / step) * step
    return np.mean((FUNCTIONS[function](rounded) - FUNCTIONS[function](values)) ** 2)


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_levels_are_not_spent_where_the_function_is_flat(function):
    values = np.random.default_rng(0).normal(-4, 5, 20_000)
    low = useful_low(seen(values), UINT8, function)
    assert values.min() < -20
    assert -10 < low < -2
    high = values.max()
    assert error_behind(function, values, low, high) < error_behind(function, values, values.min(), high) / 2


@pytest.mark.parametrize(
    ("values", "grid"),
    [
        ([], UINT8),
        ([0.0, 1.0, 2.0], UINT8),  # nothing below zero
        (np.linspace(-1, 8, 1000), INT8),  # the high end decides on the step
        (np.linspace(-0.5, 0.5, 1000), UINT8),  # nowhere flat
    ],
)
def test_nothing_is_cut_that_would_not_make_smaller_steps(values, grid):
    assert useful_low(seen(values), grid, "silu") == -np.inf


def test_extremes_do_no_harm():
    assert np.isfinite(FUNCTIONS["silu"](np.array([-1e30, 1e30]))).all()
    assert useful_low(seen([-3e38, -1.0, 0.5, 3.0]), UINT8, "silu") == -np.inf  # bins are too wide to tell
