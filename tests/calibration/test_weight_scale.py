"""The refined scale is never worse, and is what a search by hand finds."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calibration import weight_scale
from onnxq.calibration.weight_scale import refine_scale
from onnxq.core.numerics import dequantize, params_from_range, quantize, weight_range
from onnxq.core.plan import QuantParams, QuantSpec


def error(weight, params, spec):
    return np.square(weight - dequantize(quantize(weight, params, spec), params, spec))


@given(
    seed=st.integers(0, 1000),
    axis=st.sampled_from([0, 1, -1, None]),
    dtype=st.sampled_from([ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4]),
    symmetric=st.booleans(),
)
def test_no_channel_gets_worse(seed, axis, dtype, symmetric):
    weight = np.random.default_rng(seed).normal(size=(6, 5, 3)).astype(np.float32)
    spec = QuantSpec(dtype, symmetric=symmetric, axis=axis, narrow_range=True)
    start = params_from_range(*weight_range(weight, spec), spec)
    refined = refine_scale(weight, start, spec)
    others = None if axis is None else tuple({0, 1, 2} - {axis % 3})
    before, after = (error(weight, p, spec).sum(axis=others) for p in (start, refined))
    assert (after <= before * (1 + 1e-5)).all()
    assert refined.scale.shape == start.scale.shape


@given(
    seed=st.integers(0, 1000),
    axis=st.sampled_from([0, 1, -1]),
    size=st.integers(1, 8),
    symmetric=st.booleans(),
)
def test_no_block_gets_worse(seed, axis, size, symmetric):
    weight = np.random.default_rng(seed).normal(size=(7, 5)).astype(np.float32)
    spec = QuantSpec(ir.DataType.INT4, symmetric=symmetric, axis=axis, block_size=size)
    start = params_from_range(*weight_range(weight, spec), spec)
    refined = refine_scale(weight, start, spec)
    starts = np.arange(0, weight.shape[axis], size)
    before, after = (np.add.reduceat(error(weight, p, spec), starts, axis) for p in (start, refined))
    assert (after <= before * (1 + 1e-5)).all()
    assert refined.scale.shape == start.scale.shape == before.shape


@pytest.mark.parametrize("bits", [4, 8])
def test_few_levels_give_up_an_outlier_and_many_do_not(bits):
    weight = np.random.default_rng(0).normal(size=(20, 400)).astype(np.float32)
    weight[:, 7] = 6.0
    spec = QuantSpec(ir.DataType[f"INT{bits}"], symmetric=True, axis=0)
    start = params_from_range(*weight_range(weight, spec), spec)
    ratio = refine_scale(weight, start, spec).scale / start.scale
    assert (ratio < 0.8).all() if bits == 4 else (ratio > 0.95).all()


def test_the_best_scale_of_few_levels_is_found():
    weight = np.random.default_rng(0).normal(size=(30, 200)).astype(np.float32)
    spec = QuantSpec(ir.DataType.INT4, symmetric=True, axis=0)
    start = params_from_range(*weight_range(weight, spec), spec)
    tried = [QuantParams(start.scale * np.float32(m), start.zero_point) for m in np.linspace(0.2, 1.5, 1001)]
    best = np.min([error(weight, params, spec).sum(axis=1) for params in tried], axis=0).sum()
    assert error(weight, refine_scale(weight, start, spec), spec).sum() < 1.01 * best


def test_it_helps_where_few_weights_share_a_scale():
    weight = np.random.default_rng(0).normal(size=(200, 9)).astype(np.float32)
    spec = QuantSpec(ir.DataType.INT8, symmetric=True, axis=0, narrow_range=True)
    start = params_from_range(*weight_range(weight, spec), spec)
    refined = refine_scale(weight, start, spec)
    assert error(weight, refined, spec).sum() < 0.8 * error(weight, start, spec).sum()


def test_blocks_change_nothing(monkeypatch):
    weight = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
    spec = QuantSpec(ir.DataType.INT8, symmetric=True, axis=0)
    start = params_from_range(*weight_range(weight, spec), spec)
    whole = refine_scale(weight, start, spec)
    monkeypatch.setattr(weight_scale, "BLOCK", 20)
    assert refine_scale(weight, start, spec).scale.tobytes() == whole.scale.tobytes()


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (4, 3)])
def test_nothing_to_refine_in_empty_or_dead_weights(shape):
    weight = np.zeros(shape, np.float32)
    spec = QuantSpec(ir.DataType.INT8, symmetric=True, axis=0)
    start = params_from_range(np.zeros(shape[0]), np.zeros(shape[0]), spec)
    assert np.isfinite(refine_scale(weight, start, spec).scale).all()
