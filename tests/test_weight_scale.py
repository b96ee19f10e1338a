"""The refined scale is never worse, and is what a search by hand finds."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq import weight_scale
from onnxq.numerics import dequantize, params_from_range, quantize, weight_range
from onnxq.plan import QuantSpec
from onnxq.weight_scale import refine_scale


def error(weight, params, spec):
    return np.square(weight - dequantize(quantize(weight, params, spec), params, spec))


@given(
    seed=st.integers(0, 1000),
    axis=st.sampled_from([0, 1, None]),
    dtype=st.sampled_from([ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4]),
)
def test_no_channel_gets_worse(seed, axis, dtype):
    weight = np.random.default_rng(seed).normal(size=(6, 5, 3)).astype(np.float32)
    spec = QuantSpec(dtype, symmetric=True, axis=axis, narrow_range=True)
    start = params_from_range(*weight_range(weight, spec), spec)
    refined = refine_scale(weight, start, spec)
    others = None if axis is None else tuple({0, 1, 2} - {axis})
    before, after = (error(weight, p, spec).sum(axis=others) for p in (start, refined))
    assert (after <= before * (1 + 1e-5)).all()
    assert refined.scale.shape == start.scale.shape


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
