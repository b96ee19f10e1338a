"""GPTQ for blocks: the error of the output is less than that of blocks rounded alone, whatever the shape."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxq.algorithms.weights.block_gptq import gptq_blocks
from onnxq.algorithms.weights.block_scales import BlockGrid, BlockWeights, quantize_blocks


def correlated(columns: int, count: int = 2000) -> np.ndarray:
    """Second moments of inputs that depend on a few others, with channels of very different size."""
    rng = np.random.default_rng(3)
    hidden = rng.standard_normal((count, max(2, columns // 8)))
    mixed = hidden @ rng.standard_normal((hidden.shape[1], columns)) + 0.3 * rng.standard_normal(
        (count, columns)
    )
    mixed *= np.exp(rng.standard_normal(columns))
    return mixed.T @ mixed / count


def output_error(matrix: np.ndarray, found: BlockWeights, moments: np.ndarray) -> float:
    difference = matrix.astype(np.float64) - found.reals(matrix.shape[1])
    return float(np.einsum("rk,kj,rj->", difference, moments, difference))


def matrix_of(columns: int, rows: int = 40) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [64, 75])
def test_the_error_of_the_output_is_much_less(bits: int, symmetric: bool, columns: int) -> None:
    matrix, grid, moments = matrix_of(columns), BlockGrid(bits, symmetric, 32), correlated(columns)
    alone = quantize_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid)
    found = gptq_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, [moments])
    assert found.levels.max() <= grid.highest
    assert found.levels.shape == alone.levels.shape
    assert not symmetric or (found.zero == grid.middle).all()
    assert output_error(matrix, found, moments) < 0.5 * output_error(matrix, alone, moments)


def test_scales_are_exact_in_their_type() -> None:
    matrix, grid = matrix_of(64), BlockGrid(4, False, 16, ml_dtypes.bfloat16)
    found = gptq_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, [correlated(64)])
    assert np.array_equal(found.scale, found.scale.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_several_parts_of_rows_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, grid, moments = matrix_of(96), BlockGrid(4, False, 32), [correlated(96)]
    whole = gptq_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, moments)
    monkeypatch.setattr("onnxq.algorithms.weights.block_gptq.ROWS", 16)
    parts = gptq_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, moments, threads=3)
    np.testing.assert_allclose(parts.reals(96), whole.reals(96), rtol=1e-4)


def test_moments_of_successive_inputs() -> None:
    matrix, grid, moments = matrix_of(107), BlockGrid(4, False, 32), correlated(107)
    moments[:64, 64:] = moments[64:, :64] = 0
    split = [moments[:64, :64], moments[64:, 64:]]
    one, other = (
        gptq_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, each)
        for each in ([moments], split)
    )
    assert output_error(matrix, other, moments) == pytest.approx(output_error(matrix, one, moments), rel=0.1)


def test_inputs_that_are_always_zero() -> None:
    matrix, grid = matrix_of(64), BlockGrid(4, False, 32)
    found = gptq_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid, [np.zeros((64, 64))])
    alone = quantize_blocks(lambda start, stop: matrix[start:stop], matrix.shape, grid)
    assert output_error(matrix, found, np.eye(64)) < 1.1 * output_error(matrix, alone, np.eye(64))


def test_weights_that_are_not_finite() -> None:
    matrix = matrix_of(64)
    matrix[3, 5] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        gptq_blocks(
            lambda start, stop: matrix[start:stop], matrix.shape, BlockGrid(4, False, 32), [correlated(64)]
        )
