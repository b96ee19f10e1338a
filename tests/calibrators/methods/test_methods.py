"""Every method against a slow and direct one, and against what each of them promises."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibrators.errors import CalibrationError
from calibrators.grid import Grid
from calibrators.methods import CALIBRATORS
from calibrators.methods.auto import LEAST, MOST, auto
from calibrators.methods.entropy import candidates, divergences, entropy
from calibrators.methods.mse import Density, _parameters, mse, squared_errors
from calibrators.methods.percentile import percentile
from calibrators.statistics import TensorStatistics
from onnxq.core.numerics import dequantize, grid_of, params_from_range, quantize
from onnxq.core.plan import QuantSpec

UINT8, INT8, NARROW = Grid(0, 255, False), Grid(-128, 127, True), Grid(-127, 127, True)
INT8_ASYMMETRIC, UINT8_SYMMETRIC, SEVEN_BITS = Grid(-128, 127, False), Grid(0, 255, True), Grid(-64, 63, True)
INT4, UINT4, INT16, UINT16 = (
    Grid(-8, 7, True),
    Grid(0, 15, False),
    Grid(-32768, 32767, True),
    Grid(0, 65535, False),
)
GRIDS = [UINT8, INT8, NARROW, INT8_ASYMMETRIC, UINT8_SYMMETRIC, SEVEN_BITS, INT4, UINT4, INT16, UINT16]
SPECS = {
    UINT8: QuantSpec(ir.DataType.UINT8, False),
    INT8: QuantSpec(ir.DataType.INT8, True),
    NARROW: QuantSpec(ir.DataType.INT8, True, narrow_range=True),
    INT8_ASYMMETRIC: QuantSpec(ir.DataType.INT8, False),
    UINT8_SYMMETRIC: QuantSpec(ir.DataType.UINT8, True),
    SEVEN_BITS: QuantSpec(ir.DataType.INT8, True, reduce_bits=1),
    INT4: QuantSpec(ir.DataType.INT4, True),
    UINT4: QuantSpec(ir.DataType.UINT4, False),
    INT16: QuantSpec(ir.DataType.INT16, True),
    UINT16: QuantSpec(ir.DataType.UINT16, False),
}
METHODS = {**CALIBRATORS, "percentile 90": partial(percentile, percentile=90)}

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(200_000).astype(np.float32)
SHAPES = {
    "normal": NORMAL,
    "relu": np.maximum(NORMAL, 0),
    "relu6": np.clip(NORMAL * 4, 0, 6),
    "silu": NORMAL * 3 / (1 + np.exp(-NORMAL * 3)),
    "long tail": np.sign(NORMAL) * np.abs(NORMAL) ** 4,
    "outlier": np.append(NORMAL, np.float32(1000)),
    "negative": -np.exp(NORMAL),
    "shifted": NORMAL + 20,
    "two values": np.where(NORMAL > 0, np.float32(-1), np.float32(3)),
}


def of(values) -> TensorStatistics:
    tensor = TensorStatistics()
    tensor.update(np.asarray(values, np.float32))
    return tensor


def params(low: float, high: float, grid: Grid) -> tuple[float, float]:
    """Scale and zero point as deployed, written out once more."""
    low, high = min(low, 0.0), max(high, 0.0)
    if grid.symmetric:
        middle = 0 if grid.qmin < 0 else 128
        return max(-low, high) / (grid.qmax - middle), middle
    scale = (high - low) / (grid.qmax - grid.qmin)
    return scale, min(max(round(grid.qmin - low / scale), grid.qmin), grid.qmax)


def loss(values: np.ndarray, low: float, high: float, grid: Grid) -> float:
    """The mean squared error of really quantizing the values."""
    scale, zero = params(low, high, grid)
    real = values.astype(np.float64)
    back = (np.clip(np.rint(real / scale) + zero, grid.qmin, grid.qmax) - zero) * scale
    return float(np.square(back - real).mean())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("share", [(1, 1), (0.5, 0.9), (0, 0.3), (0.7, 0)])
def test_the_grid_is_the_one_that_is_deployed(grid, share):
    spec = SPECS[grid]
    assert grid_of(spec) == grid
    low, high = -4.1 * share[0], 5.3 * share[1]
    deployed = params_from_range(low, high, spec)
    back = dequantize(quantize(NORMAL, deployed, spec), deployed, spec)
    scale, zero_point = _parameters(grid, np.array([low]), np.array([high]))
    assert scale[0] == pytest.approx(float(deployed.scale), rel=1e-6)
    assert zero_point[0] == deployed.zero_point
    assert loss(NORMAL, low, high, grid) == pytest.approx(np.square(back - NORMAL).mean(), rel=1e-3)


# What all methods promise


@pytest.mark.parametrize("method", METHODS)
@given(
    values=hnp.arrays(
        np.float32,
        st.integers(1, 60),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.sampled_from([0.0, 1.0, -1.0]),
    ),
    grid=st.sampled_from(GRIDS),
)
@settings(max_examples=60)
def test_a_range_lies_within_the_data_and_is_not_empty(method, values, grid):
    tensor = of(values)
    low, high = METHODS[method](tensor, grid)
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert tensor.low <= low <= high <= tensor.high
    assert low < high or tensor.low == tensor.high or method == "moving-average"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e-45, -1e-45, 3e38, -3e38])
def test_a_constant_tensor_keeps_its_value(method, grid, value):
    value = float(np.float32(value))
    assert METHODS[method](of([value] * 5), grid) == (value, value)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_seen_gives_no_range(method):
    with pytest.raises(CalibrationError, match="no finite value"):
        METHODS[method](of([math.nan]), UINT8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", [UINT8, INT8])
@pytest.mark.parametrize("power", [-40, 3, 60])
def test_scaling_the_data_by_a_power_of_two_scales_the_range(method, shape, grid, power):
    low, high = METHODS[method](of(SHAPES[shape]), grid)
    scaled = METHODS[method](of(np.ldexp(SHAPES[shape], power)), grid)
    assert scaled == pytest.approx((low * 2.0**power, high * 2.0**power), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mirrored_data_give_the_mirrored_range_on_a_symmetric_grid(method, shape):
    low, high = METHODS[method](of(SHAPES[shape]), NARROW)
    assert METHODS[method](of(-SHAPES[shape]), NARROW) == pytest.approx((-high, -low), rel=0.02)


# minmax, moving average


def test_minmax():
    assert CALIBRATORS["minmax"](of([-1, 5]), UINT8) == (-1, 5)
    assert CALIBRATORS["minmax"](of([2, 5]), INT8) == (2, 5)


def test_moving_average():
    tensor = TensorStatistics()
    for batch in ([-1, 1], [-2, 11]):
        tensor.update(np.array(batch, np.float32))
    assert CALIBRATORS["moving-average"](tensor, UINT8) == pytest.approx((-1.1, 2))


# percentile


@pytest.mark.parametrize("share", [50, 90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", [UINT8, INT8])
def test_percentile_leaves_out_at_most_its_share_and_not_a_bin_more(shape, share, grid):
    values, tensor = SHAPES[shape].astype(np.float64), of(SHAPES[shape])
    low, high = percentile(tensor, grid, percentile=share)
    width, spare = tensor.histogram.width, values.size * (1 - share / 100)
    if grid.symmetric or values.min() >= 0 or values.max() <= 0:
        limit = max(-low, high)
        assert np.count_nonzero(np.abs(values) > limit) <= spare
        assert np.count_nonzero(np.abs(values) >= limit - width) > spare
        return
    assert np.count_nonzero(values > high) <= spare / 2
    assert np.count_nonzero(values < low) <= spare / 2
    assert np.count_nonzero(values >= high - width) > spare / 2
    assert np.count_nonzero(values <= low + 2 * width) > spare / 2


def test_percentile_100_is_minmax():
    assert percentile(of(NORMAL), UINT8, percentile=100) == (NORMAL.min(), NORMAL.max())


def test_one_sided_data_give_the_same_range_on_every_grid():
    tensor = of(SHAPES["relu"])
    assert percentile(tensor, UINT8, percentile=99) == percentile(tensor, INT8, percentile=99)


@pytest.mark.parametrize("share", [0, -1, 100.1, math.nan])
def test_a_percentile_beyond_the_scale_is_refused(share):
    with pytest.raises(CalibrationError, match="percentile"):
        percentile(of(NORMAL), UINT8, percentile=share)


# entropy


def direct_divergence(counts: np.ndarray, levels: int, clip: int) -> float:
    """KL(P || Q) of one candidate, step by step as the method is described."""
    reference = counts[:clip].copy()
    reference[-1] += counts[clip:].sum()
    quantized = np.zeros(clip)
    for bucket in range(levels):
        start, stop = bucket * clip // levels, (bucket + 1) * clip // levels
        filled = counts[start:stop] > 0
        if filled.any():
            quantized[start:stop][filled] = counts[start:stop].sum() / filled.sum()
    if not quantized.sum():
        return math.inf
    p, q = reference / reference.sum(), quantized / quantized.sum()
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += math.inf if b == 0 else a * math.log(a / b)
    return total


@given(
    counts=st.lists(st.integers(0, 3) | st.integers(0, 10**6), min_size=12, max_size=80),
    levels=st.sampled_from([4, 7, 8]),
)
def test_divergences_are_those_of_the_direct_way(counts, levels):
    histogram = np.array([*counts, 1], np.float64)
    clips = np.arange(levels, histogram.size + 1)
    expected = [direct_divergence(histogram, levels, int(clip)) for clip in clips]
    np.testing.assert_allclose(divergences(histogram, levels, clips), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ("normal", INT8),
        ("relu", INT8),
        ("long tail", INT8),
        ("outlier", INT8),
        ("relu", UINT8),
        ("negative", UINT8),
    ],
)
def test_entropy_takes_the_candidate_that_diverges_least(shape, grid):
    tensor = of(SHAPES[shape])
    counts = np.trim_zeros(tensor.histogram.magnitudes(), "b").astype(np.float64)
    counts[0] = counts[1]
    levels = 128 if grid.symmetric else 256
    low, high = entropy(tensor, grid)
    chosen = direct_divergence(counts, levels, round(max(-low, high) / tensor.histogram.width + 0.499))
    for clip in range(levels, counts.size, 97):
        assert chosen <= direct_divergence(counts, levels, clip) + 1e-8 or clip not in candidates(
            counts.size, levels
        )


def test_entropy_looks_at_many_candidates_from_all_bins_down():
    for bins in (300, 2048, 2049, 4096):
        clips = candidates(bins, 128)
        assert clips[-1] == bins
        assert 128 <= clips[0] <= 129
        assert min(bins, 1024) - 128 <= clips.size <= 2048


@given(
    counts=st.lists(st.integers(0, 3) | st.integers(0, 10**6), min_size=20, max_size=60),
    start=st.integers(0, 5),
    clipped=st.integers(0, 5),
    levels=st.sampled_from([4, 7, 8]),
)
def test_divergences_of_both_ends_are_those_of_the_direct_way(counts, start, clipped, levels):
    histogram = np.array(counts, np.float64)
    stop = histogram.size - clipped
    kept = histogram[start:stop]
    reference, quantized = kept.copy(), np.zeros(kept.size)
    reference[0] += histogram[:start].sum()
    reference[-1] += histogram[stop:].sum()
    for bucket in range(levels):
        part = slice(bucket * kept.size // levels, (bucket + 1) * kept.size // levels)
        filled = kept[part] > 0
        quantized[part][filled] = kept[part].sum() / max(filled.sum(), 1)
    found = divergences(histogram, levels, np.array([stop]), np.array([start]))[0]
    if not kept.sum() or ((reference > 0) & (quantized == 0)).any():
        assert found == math.inf
        return
    p, q = reference / reference.sum(), quantized / quantized.sum()
    assert found == pytest.approx((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum(), rel=1e-9, abs=1e-12)


def test_entropy_looks_at_both_ends_of_a_skewed_tensor():
    """A long tail on one side is cut without the other side losing anything."""
    values = np.where(NORMAL > 0, NORMAL**4, np.maximum(NORMAL, -1))
    low, high = entropy(of(values), UINT8)
    assert low == pytest.approx(-1, rel=0.1)
    assert high < 0.5 * values.max()
    low, high = entropy(of(-values), UINT8)
    assert low > -0.7 * values.max()
    assert high == pytest.approx(1, rel=0.1)


def test_entropy_clips_a_long_tail_but_not_a_box():
    low, high = entropy(of(SHAPES["long tail"]), INT8)
    assert max(-low, high) < 0.5 * np.abs(SHAPES["long tail"]).max()
    box = RNG.uniform(-1, 1, 200_000)
    assert entropy(of(box), INT8) == pytest.approx((box.min(), box.max()), rel=0.02)


def test_the_zeros_of_relu_do_not_change_the_threshold():
    values = np.abs(NORMAL)
    spike = np.append(values, np.zeros(1_000_000, np.float32))
    assert entropy(of(spike), UINT8) == pytest.approx((0, entropy(of(values), UINT8)[1]))


def test_a_grid_finer_than_the_histogram_keeps_the_whole_range():
    assert entropy(of(SHAPES["long tail"]), INT16) == (SHAPES["long tail"].min(), SHAPES["long tail"].max())


# mse


def own_error(tensor: TensorStatistics, grid: Grid, low: float, high: float) -> float:
    return (
        float(squared_errors(Density.of(tensor), grid, np.array([low]), np.array([high]))[0]) / tensor.count
    )


@pytest.mark.parametrize("grid", [UINT8, INT8, NARROW, INT8_ASYMMETRIC, UINT8_SYMMETRIC, SEVEN_BITS, UINT4])
@pytest.mark.parametrize("shape", ["normal", "relu6", "silu", "long tail", "negative", "shifted"])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_the_error_of_the_histogram_is_that_of_the_values(shape, grid, share):
    values = SHAPES[shape]
    tensor = of(values)
    low, high = tensor.low * share, tensor.high * share
    assert own_error(tensor, grid, low, high) == pytest.approx(
        loss(values, low, high, grid), rel=0.05, abs=1e-9
    )


def test_the_error_of_evenly_spread_values_is_exact():
    """The error must be the integral, whatever the scale is."""
    tensor = of(np.linspace(0, 1, 1_000_001)[:-1])
    for high in (1.0, 0.71, 0.013):
        scale = high / 255
        steps = np.floor(1 / scale + 0.5)
        inside = min(steps, 255.0)
        left = (1 - inside * scale) / scale
        expected = scale**2 * (inside / 12 + left**3 / 3) * scale
        assert own_error(tensor, UINT8, 0, high) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", GRIDS)
def test_mse_is_never_worse_than_minmax(shape, grid):
    tensor = of(SHAPES[shape])
    best = own_error(tensor, grid, *mse(tensor, grid))
    assert best <= own_error(tensor, grid, tensor.low, tensor.high) * (1 + 1e-12)


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(GRIDS),
)
@settings(max_examples=60)
def test_mse_is_never_worse_than_minmax_on_anything(values, grid):
    tensor = of(values)
    if tensor.amax:
        best = own_error(tensor, grid, *mse(tensor, grid))
        assert best <= own_error(tensor, grid, tensor.low, tensor.high) * (1 + 1e-9) + 1e-9 * tensor.amax**2


@pytest.mark.parametrize("shape", ["normal", "relu", "silu", "long tail", "negative"])
@pytest.mark.parametrize("grid", [UINT8, INT8, UINT4])
def test_mse_comes_close_to_brute_force(shape, grid):
    values = SHAPES[shape][:20_000]
    low, high = float(values.min()), float(values.max())
    shares = np.linspace(1, 0, 40, endpoint=False)
    if grid.symmetric:
        limits = max(-low, high) * shares
        pairs = [(max(low, -limit), min(high, limit)) for limit in limits]
    else:
        pairs = [(low * a, high * b) for a in shares for b in shares]
        pairs = pairs[:: 1 if low < 0 < high else len(shares)] if high <= 0 else pairs
    brute = min(loss(values, a, b, grid) for a, b in pairs)
    assert loss(values, *mse(of(values), grid), grid) <= 1.02 * brute


def test_mse_finds_a_far_clip():
    """One value in a million, fifty times too large, must not spoil four bits."""
    values = np.append(np.tile(NORMAL, 5), np.float32(50 * np.abs(NORMAL).max()))
    low, high = mse(of(values), UINT4)
    assert high < 10
    assert loss(values, low, high, UINT4) < 0.1 * loss(values, values.min(), values.max(), UINT4)


# auto


def weighed_loss(values: np.ndarray, low: float, high: float, grid: Grid, weight: float) -> float:
    """Rounding and ``weight`` times clipping, value by value."""
    scale, zero = params(low, high, grid)
    real = values.astype(np.float64)
    ends = (np.array([grid.qmin, grid.qmax]) - zero) * scale
    return loss(values, low, high, grid) + (weight - 1) * float(np.square(real - real.clip(*ends)).mean())


@pytest.mark.parametrize("averaged", [1, 9, 1000])
@pytest.mark.parametrize("grid", [UINT8, INT8])
@pytest.mark.parametrize("shape", ["normal", "relu", "silu", "long tail", "negative"])
def test_auto_weighs_clipping_by_what_is_averaged(shape, grid, averaged):
    values = SHAPES[shape][:20_000]
    weight = min(max(averaged, LEAST), MOST)
    chosen = weighed_loss(values, *auto(of(values), grid, averaged), grid, weight)
    low, high = float(values.min()), float(values.max())
    for share in np.linspace(1, 0, 30, endpoint=False):
        assert chosen <= 1.03 * weighed_loss(values, low * share, high * share, grid, weight)
        assert chosen <= 1.03 * weighed_loss(values, low, high * share, grid, weight)


@pytest.mark.parametrize("grid", [UINT8, INT8])
def test_the_more_is_averaged_the_less_is_clipped(grid):
    tensor = of(SHAPES["long tail"])
    widths = [high - low for low, high in (auto(tensor, grid, n) for n in (1, 4, 16, 32))]
    assert widths == sorted(widths)
    assert widths[0] < 0.95 * widths[-1]
    low, high = mse(tensor, grid)
    assert high - low < widths[0]


def test_what_is_averaged_concerns_auto_alone():
    tensor = of(SHAPES["long tail"])
    for name, method in CALIBRATORS.items():
        assert (method(tensor, UINT8, 1) == method(tensor, UINT8, 100)) == (name != "auto")


@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_a_weight_counts_what_is_clipped_that_many_times(weight):
    tensor = of(SHAPES["silu"])
    low, high = tensor.low * 0.5, tensor.high * 0.3
    ends = np.array([low]), np.array([high])
    error = squared_errors(Density.of(tensor), UINT8, *ends, weight)[0] / tensor.count
    assert error == pytest.approx(weighed_loss(SHAPES["silu"], low, high, UINT8, weight), rel=0.01)


def test_extremes_beyond_the_filled_bins_do_no_harm():
    """Where only a selection of elements was counted, the outermost ones may be missing."""
    tensor, full = of(np.append(NORMAL, np.float32(6.5))), of(NORMAL)
    tensor.histogram.counts[tensor.histogram.counts.size // 2 + 3000 :] = 0
    assert tensor.high == 6.5
    for name, method in CALIBRATORS.items():
        low, high = method(tensor, UINT8)
        assert tensor.low <= low < high <= tensor.high, name
    assert mse(tensor, UINT8) == pytest.approx(mse(full, UINT8), rel=0.1)
