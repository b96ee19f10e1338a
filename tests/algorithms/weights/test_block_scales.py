"""Scales of blocks: the error is never larger than that of the covering scale, whatever the shape."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxq.algorithms.weights.block_scales import BlockGrid, quantize_blocks


def rounded(matrix: np.ndarray, grid: BlockGrid) -> np.ndarray:
    found = quantize_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid)
    assert found.levels.max() <= grid.highest
    return found.reals(matrix.shape[1])


def covering_error(matrix: np.ndarray, grid: BlockGrid) -> float:
    """The squared error of the scales that cover each block, one block at a time."""
    total = 0.0
    for row in matrix.astype(np.float64):
        for start in range(0, len(row), grid.size):
            block = row[start : start + grid.size]
            low, high = min(block.min(), 0), max(block.max(), 0)
            if grid.symmetric:
                scale, zero = max(-low / grid.middle, high / (grid.highest - grid.middle)), grid.middle
            else:
                scale = (high - low) / grid.highest
                zero = round(-low / scale)
            levels = np.clip(np.rint(block / scale) + zero, 0, grid.highest)
            total += float(np.square(block - (levels - zero) * scale).sum())
    return total


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [64, 75])
def test_the_error_is_less_than_that_of_covering_scales(bits: int, symmetric: bool, columns: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((37, columns)).astype(np.float32)
    grid = BlockGrid(bits, symmetric, 32)
    error = float(np.square(matrix - rounded(matrix, grid), dtype=np.float64).sum())
    assert error <= covering_error(matrix, grid) * 1.0001


def test_numbers_on_a_grid_are_exact() -> None:
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 16, (8, 64)).astype(np.float32)
    levels[:, ::32], levels[:, 1::32] = 0, 15
    matrix = (levels - 6) * np.float32(0.25)
    np.testing.assert_allclose(rounded(matrix, BlockGrid(4, False, 32)), matrix, rtol=1e-6)


def test_several_parts_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(2).standard_normal((50, 64)).astype(np.float32)
    whole = rounded(matrix, BlockGrid(4, False, 32))
    monkeypatch.setattr("onnxq.algorithms.weights.block_scales.CHUNK", 192)
    assert np.array_equal(rounded(matrix, BlockGrid(4, False, 32)), whole)


def test_zeros_and_tiny_numbers_stay_finite() -> None:
    matrix = np.zeros((2, 64), np.float32)
    matrix[1] = 1e-42
    assert np.abs(rounded(matrix, BlockGrid(4, False, 32))).max() <= 1e-40


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_scales_are_exact_in_their_type(kind: type) -> None:
    matrix = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32) * 1e-3
    found = quantize_blocks(lambda a, b: matrix[a:b], matrix.shape, BlockGrid(4, False, 32, kind))
    assert np.array_equal(found.scale.astype(kind).astype(np.float32), found.scale)
    assert (found.scale > 0).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(wrong: float) -> None:
    matrix = np.ones((3, 64), np.float32)
    matrix[1, 5] = wrong
    with pytest.raises(ValueError, match="NaN or infinite"):
        rounded(matrix, BlockGrid(4, False, 32))


@pytest.mark.parametrize("bits", [2, 4])
def test_known_squares_of_inputs_weigh_errors(bits: int) -> None:
    rng = np.random.default_rng(8)
    matrix = rng.standard_normal((40, 75)).astype(np.float32)
    squares = np.exp(3 * rng.standard_normal(75)).astype(np.float32)
    grid = BlockGrid(bits, False, 32)
    known, guessed = (
        quantize_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, squares=each).reals(75)
        for each in (squares, None)
    )
    error, other = (float((np.square(matrix - each) * squares).sum()) for each in (known, guessed))
    assert error < 0.8 * other


def test_inputs_that_are_always_zero_count_a_little() -> None:
    matrix = np.random.default_rng(8).standard_normal((4, 64)).astype(np.float32)
    grid = BlockGrid(8, False, 32)
    found = quantize_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, squares=np.zeros(64))
    np.testing.assert_allclose(found.reals(64), matrix, atol=0.05)
