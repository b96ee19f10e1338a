"""Coordinate descent over levels."""

from itertools import product

import numpy as np
import pytest
from benches import damped

from onnxq.algorithms.weights.gptq import BLOCK, WeightGrid, coordinate_descent, gptq_columns, output_error


def scene(groups, outputs, inputs, scale=0.3, seed=0):
    """Weights, moments of strongly correlated inputs, and a grid of 16 levels."""
    rng = np.random.default_rng(seed)
    exact = rng.normal(size=(groups, outputs, inputs))
    rows = rng.normal(size=(groups, 4 * inputs, 3)) @ rng.normal(size=(groups, 3, inputs))
    rows += 0.3 * rng.normal(size=rows.shape)
    second = rows.transpose(0, 2, 1) @ rows / rows.shape[1]
    full = np.ones_like(exact)
    return exact, damped(second), WeightGrid(scale * full, -8 * full, 7 * full)


def nearest(exact, grid):
    return np.rint(exact / grid.scale).clip(grid.lowest, grid.highest) * grid.scale


@pytest.mark.parametrize("shape", [(1, 5, 7), (6, 1, 9), (2, 4, BLOCK), (1, 3, 2 * BLOCK + 5)], ids=str)
def test_no_row_gets_worse_and_all_together_better(shape):
    exact, second, grid = scene(*shape)
    for rounded, share in ((nearest(exact, grid), 0.95), (gptq_columns(exact, second, grid), 1)):
        before = output_error(exact - rounded, second)
        after = output_error(exact - coordinate_descent(exact, rounded, second, grid), second)
        assert (after <= before + 1e-12).all()
        assert after.sum() <= share * before.sum()


@pytest.mark.parametrize("inputs", [9, BLOCK + 3])
def test_in_the_end_no_single_step_makes_it_better(inputs):
    exact, second, grid = scene(1, 4, inputs)
    settled = coordinate_descent(exact, nearest(exact, grid), second, grid, rounds=50)
    least = output_error(exact - settled, second)
    for column, step in product(range(inputs), (-1, 1)):
        moved = settled.copy()
        moved[:, :, column] += step * grid.scale[:, :, column]
        inside = np.abs(moved[:, :, column] / 0.3 + 0.5) < 8
        assert (output_error(exact - moved, second)[inside] >= least[inside] - 1e-12).all()


def test_it_stays_on_the_grid_and_changes_no_argument():
    exact, second, grid = scene(1, 6, 20)
    rounded = nearest(2 * exact, grid)
    before = rounded.copy()
    settled = coordinate_descent(2 * exact, rounded, second, grid) / grid.scale
    levels = np.rint(settled)
    np.testing.assert_allclose(levels, settled, atol=1e-9)
    assert levels.min() >= -8
    assert levels.max() <= 7
    assert np.array_equal(rounded, before)


def test_weights_on_the_grid_stay():
    exact, second, grid = scene(1, 3, 12)
    placed = nearest(exact, grid)
    assert np.array_equal(coordinate_descent(placed, placed, second, grid), placed)


def test_inputs_that_know_nothing_of_each_other_are_rounded_to_nearest():
    exact, _, grid = scene(1, 4, 10)
    second = np.diag(np.arange(1.0, 11.0))[None]
    np.testing.assert_allclose(
        coordinate_descent(exact, np.zeros_like(exact), second, grid), nearest(exact, grid), atol=1e-12
    )
