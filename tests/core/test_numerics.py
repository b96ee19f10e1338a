"""Number formats: the truth table, and what must hold for every range and array."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx.reference import ReferenceEvaluator

from calibrators.float8 import run
from calibrators.session import open_session
from onnxq.core.numerics import (
    SMALLEST_SCALE,
    dequantize,
    params_from_range,
    quantize,
    quantize_bias,
    sqnr,
    weight_range,
)
from onnxq.core.plan import QuantParams, QuantSpec

UINT8 = QuantSpec(ir.DataType.UINT8, symmetric=False)
INT8 = QuantSpec(ir.DataType.INT8, symmetric=True, narrow_range=True)
SPECS = [
    UINT8,
    INT8,
    QuantSpec(ir.DataType.UINT8, symmetric=True),
    QuantSpec(ir.DataType.INT8, symmetric=False),
    QuantSpec(ir.DataType.INT8, symmetric=True, reduce_bits=1),
    QuantSpec(ir.DataType.UINT16, symmetric=False),
    QuantSpec(ir.DataType.INT16, symmetric=True),
    QuantSpec(ir.DataType.INT4, symmetric=True),
    QuantSpec(ir.DataType.UINT4, symmetric=False),
    QuantSpec(ir.DataType.INT8, symmetric=True, power_of_two=True),
    QuantSpec(ir.DataType.UINT8, symmetric=False, power_of_two=True),
]
floats = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        (UINT8, (0, 255)),
        (INT8, (-127, 127)),
        (QuantSpec(ir.DataType.INT8, symmetric=False), (-128, 127)),
        (QuantSpec(ir.DataType.INT8, symmetric=True, reduce_bits=1), (-64, 63)),
        (QuantSpec(ir.DataType.INT4, symmetric=True), (-8, 7)),
        (QuantSpec(ir.DataType.UINT4, symmetric=False), (0, 15)),
        (QuantSpec(ir.DataType.UINT16, symmetric=False), (0, 65535)),
    ],
)
def test_limits(spec, limits):
    assert spec.limits == limits


def test_asymmetric_truth_table():
    params = params_from_range(-1.0, 3.0, UINT8)
    assert params.scale == np.float32(4 / 255)
    assert params.zero_point == 64
    assert params.zero_point.dtype == np.uint8


def test_symmetric_truth_table():
    params = params_from_range(-2.54, 1.0, INT8)
    assert params.scale == np.float32(0.02)
    assert params.zero_point == 0
    assert params.zero_point.dtype == np.int8


def test_symmetric_unsigned_has_its_zero_in_the_middle():
    assert params_from_range(-1.0, 1.0, QuantSpec(ir.DataType.UINT8, symmetric=True)).zero_point == 128


@given(low=floats, high=floats, spec=st.sampled_from(SPECS))
def test_zero_is_exact_and_the_range_is_covered(low, high, spec):
    assume(low <= high)
    params = params_from_range(low, high, spec)
    assert params.scale > 0
    zero = quantize(np.zeros(1, np.float32), params, spec)
    assert dequantize(zero, params, spec) == 0
    ends = np.array([low, high], np.float32)
    back = dequantize(quantize(ends, params, spec), params, spec)
    assert np.abs(back - ends).max() <= 1.01 * float(params.scale) + 1e-5 * np.abs(ends).max()


@given(values=arrays(np.float32, array_shapes(max_dims=3), elements=floats), spec=st.sampled_from(SPECS))
def test_rounding_error_is_at_most_half_a_step_inside_the_range(values, spec):
    params = params_from_range(values.min(), values.max(), spec)
    qmin, qmax = spec.limits
    low = (qmin - float(params.zero_point)) * float(params.scale)
    high = (qmax - float(params.zero_point)) * float(params.scale)
    inside = (values >= low) & (values <= high)
    error = np.abs(dequantize(quantize(values, params, spec), params, spec) - values)[inside]
    assert (error <= 0.5 * params.scale * (1 + 1e-5) + 1e-6 * np.abs(values[inside])).all()


@given(high=st.floats(1e-3, 1e3), low=st.floats(-1e3, 0.0), limit=st.floats(1e-2, 10.0))
def test_the_grid_stays_inside_its_bounds(low, high, limit):
    for bounds in ((0.0, limit), (-limit, limit), (0.0, np.inf)):
        params = params_from_range(low, high, UINT8, bounds)
        ends = (np.array(UINT8.limits) - float(params.zero_point)) * np.float64(params.scale)
        assert ends[0] >= bounds[0]
        assert ends[1] <= bounds[1]


def test_relu6_keeps_its_zero_point_and_full_range():
    params = params_from_range(-3.0, 9.0, UINT8, (0.0, 6.0))
    assert params.zero_point == 0
    assert 255 * float(params.scale) == pytest.approx(6.0, rel=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_an_empty_range_gets_scale_one(spec):
    assert params_from_range(0.0, 0.0, spec).scale == 1


def test_scales_never_become_subnormal():
    params = params_from_range(-1e-44, 1e-44, INT8)
    assert params.scale == np.float32(SMALLEST_SCALE)
    assert np.isfinite(np.float32(1) / params.scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_range_must_be_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        params_from_range(0.0, bad, UINT8)


def test_per_channel_parameters_follow_the_axis():
    weight = np.array([[1.0, -2.0, 0.0], [0.5, 1.0, 0.0]], np.float32)
    spec = QuantSpec(ir.DataType.INT8, symmetric=True, axis=1, narrow_range=True)
    low, high = weight_range(weight, spec)
    params = params_from_range(low, high, spec)
    np.testing.assert_allclose(params.scale, np.array([1 / 127, 2 / 127, 1], np.float32))
    assert quantize(weight, params, spec).tolist() == [[127, -127, 0], [64, 64, 0]]
    back = dequantize(quantize(weight, params, spec), params, spec)
    np.testing.assert_allclose(back, weight, atol=0.5 * 2 / 127)


def test_an_empty_weight_has_an_empty_range():
    assert weight_range(np.zeros((0, 3), np.float32), replace(INT8, axis=1)) == (0, 0)


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 4)), (1, (7, 2)), (-1, (7, 2))])
def test_blocks_have_scales_of_their_own_and_the_last_may_be_short(axis, shape):
    weight = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    spec = QuantSpec(ir.DataType.INT4, symmetric=True, axis=axis, block_size=3)
    params = params_from_range(*weight_range(weight, spec), spec)
    assert params.scale.shape == params.zero_point.shape == shape
    for (row, column), value in np.ndenumerate(weight):
        block = (row // 3, column) if axis == 0 else (row, column // 3)
        start = 3 * block[axis]
        shared = weight[start : start + 3, column] if axis == 0 else weight[row, start : start + 3]
        scale = np.float32(np.abs(shared).max() / 7)
        assert params.scale[block] == scale
        level = np.rint(value / scale)
        assert quantize(weight, params, spec)[row, column] == level
        assert dequantize(quantize(weight, params, spec), params, spec)[row, column] == level * scale


GRIDS = st.builds(
    lambda spec, axis, size: replace(spec, axis=axis, block_size=size if axis is not None else None),
    st.sampled_from(SPECS),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, 1, 2, 3, 8]),
)


@given(seed=st.integers(0, 1000), spec=GRIDS)
def test_what_lies_on_the_grid_is_kept_to_the_level(seed, spec):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(5, 4)).astype(np.float32) * 10.0 ** rng.integers(-30, 30)
    params = params_from_range(*weight_range(weight, spec), spec)
    levels = rng.integers(spec.limits[0], spec.limits[1], (5, 4), endpoint=True).astype(spec.dtype.numpy())
    real = dequantize(levels, params, spec)
    np.testing.assert_array_equal(quantize(real, params, spec).astype(int), levels.astype(int))


@pytest.mark.parametrize(
    ("spec", "opset"),
    [
        (UINT8, 13),
        (QuantSpec(ir.DataType.INT32, symmetric=True), 13),
        (QuantSpec(ir.DataType.INT4, symmetric=True), 21),
        (QuantSpec(ir.DataType.UINT16, symmetric=False), 21),
        (replace(INT8, axis=0, block_size=32), 21),
    ],
)
def test_a_format_says_which_opset_it_needs(spec, opset):
    assert spec.opset == opset


@given(st.floats(1e-30, 1e30), st.sampled_from([SPECS[-1], SPECS[-2]]))
def test_the_least_power_of_two_that_covers_the_range(high, spec):
    scale = float(params_from_range(0.0, high, spec).scale)
    plain = params_from_range(0.0, high, replace(spec, power_of_two=False)).scale
    assert np.frexp(scale)[0] == 0.5
    assert scale >= plain * (1 - 1e-6)
    assert scale / 2 < plain * (1 + 1e-6)


def test_a_scale_that_is_a_power_of_two_already_stays():
    assert params_from_range(-127 / 32, 127 / 32, SPECS[-2]).scale == np.float32(1 / 32)


def test_rounding_is_half_to_even():
    params = params_from_range(-127.0, 127.0, INT8)
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    assert quantize(halves, params, INT8).tolist() == [0, 2, 2, 0, -2]


def test_bias_saturates_instead_of_wrapping():
    levels = quantize_bias(np.array([1e20, -1e20, 0.5]), np.array([1.0, 1.0, 0.25]))
    assert levels.dtype == np.int32
    assert levels.tolist() == [2**31 - 1, -(2**31), 2]


def test_sqnr():
    reference = np.array([3.0, 4.0])
    assert sqnr(reference, reference) == np.inf
    assert sqnr(reference, reference + 0.5) == pytest.approx(10 * np.log10(25 / 0.5))
    assert sqnr(np.zeros(2), np.ones(2)) == -np.inf


# --- 8-bit floating-point numbers -------------------------------------------------------------------

FP8 = QuantSpec(ir.DataType.FLOAT8E4M3FN, symmetric=True)

Q_FP8 = """g (float[N] x) => (float8e4m3fn[N] y) <float s, float8e4m3fn z> {
    y = QuantizeLinear (x, s, z)
}"""


def awkward(scale):
    """Multiples of ``scale``: numbers of E4M3, the middles between them, subnormal and too large ones."""
    numbers = np.arange(127).astype(np.uint8).view(FP8.dtype.numpy()).astype(np.float32)
    middles = (numbers[1:] + numbers[:-1]) / 2
    rest = np.array([2.0**-11, 449, 463.9, 464, 1e6, 1e30, 1.17], np.float32)
    values = np.concatenate([numbers, middles, rest]) * np.float32(scale)
    return np.concatenate([values, -values]).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0131, 3.7e-5, 719.0])
def test_fp8_is_rounded_as_onnx_and_its_runtime_do(scale):
    params = QuantParams(np.array(scale, np.float32), np.zeros((), FP8.dtype.numpy()))
    x = awkward(scale)
    levels = quantize(x, params, FP8)
    model = parse(Q_FP8, opset=19, s=scale, z=params.zero_point)
    (runtime,) = run(open_session(model), ["y"], {"x": x})
    bits = np.where(runtime.view(np.uint8) == 128, 0, runtime.view(np.uint8))  # -0
    np.testing.assert_array_equal(levels.view(np.uint8), bits)
    (reference,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    np.testing.assert_array_equal(levels.astype(np.float32), reference.astype(np.float32))
    np.testing.assert_array_equal(quantize(dequantize(levels, params, FP8), params, FP8), levels)


def test_fp8_covers_the_range_and_has_no_zero_point():
    params = params_from_range([-1.0, 0.0], [0.5, 7.0], FP8)
    np.testing.assert_array_equal(params.scale, np.array([1 / 448, 7 / 448], np.float32))
    assert not params.zero_point.any()
    assert (FP8.limits, FP8.opset) == ((-448, 448), 19)
    assert replace(FP8, axis=0, block_size=32).opset == 21


def test_fp8_may_reach_further_than_the_bounds():
    """A wider range loses nothing, and a Clip before it stays."""
    assert params_from_range(0.0, 7.0, FP8, (0.0, 6.0)).scale == np.float32(7 / 448)
