"""Fake quantization: the numbers of Q and DQ, and gradients to train with."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.core import numerics
from onnxq.core.plan import QuantParams, QuantSpec

torch = pytest.importorskip("torch")
fake_quantize = pytest.importorskip("onnxq.torch.qat.fake_quantize")
MOMENTUM, FakeQuantize = fake_quantize.MOMENTUM, fake_quantize.FakeQuantize

U8 = QuantSpec(ir.DataType.UINT8, symmetric=False)
S8 = QuantSpec(ir.DataType.INT8, symmetric=True)
SPECS = {
    "uint8": U8,
    "uint8 symmetric": QuantSpec(ir.DataType.UINT8, symmetric=True),
    "int8": QuantSpec(ir.DataType.INT8, symmetric=False),
    "int8 narrow": QuantSpec(ir.DataType.INT8, symmetric=True, narrow_range=True),
    "4 bits": QuantSpec(ir.DataType.UINT8, symmetric=False, reduce_bits=4),
    "2 bits": QuantSpec(ir.DataType.INT8, symmetric=True, reduce_bits=6),
    "16 bits": QuantSpec(ir.DataType.UINT16, symmetric=False),
    "power of two": QuantSpec(ir.DataType.INT8, symmetric=True, power_of_two=True),
}

ends = st.floats(-1e6, 1e6, width=32)
specs = st.sampled_from(list(SPECS.values()))
bounds = st.sampled_from([numerics.UNBOUNDED, (0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])


@given(one=ends, other=ends, spec=specs, limits=bounds)
def test_scales_are_those_of_the_one_place_that_makes_them(
    one: float, other: float, spec: QuantSpec, limits: tuple[float, float]
) -> None:
    low, high = sorted((one, other))
    expected = numerics.params_from_range(low, high, spec, limits)
    scale, zero_point = fake_quantize.params_from_range(torch.tensor(low), torch.tensor(high), spec, limits)
    assert scale.numpy() == pytest.approx(expected.scale, rel=2e-7)
    assert zero_point.numpy() == expected.zero_point


@pytest.mark.parametrize("name", SPECS)
def test_numbers_are_those_of_quantize_and_dequantize(name: str) -> None:
    spec = SPECS[name]
    params = numerics.params_from_range(-1.3, 2.7, spec)
    real = np.linspace(-3, 4, 501, dtype=np.float32)
    quantizer = FakeQuantize(spec, params).eval()
    expected = numerics.dequantize(numerics.quantize(real, params, spec), params, spec)
    assert quantizer(torch.from_numpy(real)).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("axis", "block"), [(0, None), (1, None), (1, 4), (0, 3)])
def test_weights_have_scales_by_channel_and_by_block(axis: int, block: int | None) -> None:
    spec = QuantSpec(ir.DataType.INT8, symmetric=True, axis=axis, block_size=block, reduce_bits=4)
    weight = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    params = numerics.params_from_range(*numerics.weight_range(weight, spec), spec)
    start = QuantParams(np.ones_like(params.scale), params.zero_point)
    quantizer = FakeQuantize(spec, start, constant=True)
    given = quantizer(torch.from_numpy(weight)).numpy()
    expected = numerics.dequantize(numerics.quantize(weight, params, spec), params, spec)
    assert quantizer.params.scale == pytest.approx(params.scale, rel=1e-6)
    assert given == pytest.approx(expected, abs=1e-6)


def test_gradients_pass_inside_the_grid_alone() -> None:
    quantizer = FakeQuantize(S8, QuantParams(np.float32(0.5), np.int8(0))).eval()
    real = torch.tensor([-100.0, -3.2, 0.1, 63.6, 63.8, 100.0], requires_grad=True)
    quantizer(real).sum().backward()
    assert real.grad is not None
    assert real.grad.tolist() == [0, 1, 1, 1, 0, 0]


def test_learned_scales_get_the_gradient_of_the_paper() -> None:
    spec = QuantSpec(ir.DataType.INT8, symmetric=True, reduce_bits=5)  # -4 … 3
    quantizer = FakeQuantize(spec, QuantParams(np.float32(0.5), np.int8(0)), learned=True)
    real = torch.tensor([[0.7, -0.6, 9.0, -9.0]])
    quantizer(real).sum().backward()
    slopes = [1 - 1.4, -1 + 1.2, 3, -4]
    assert quantizer.scale.grad is not None
    assert float(quantizer.scale.grad) == pytest.approx(sum(slopes) / math.sqrt(4 * 3), rel=1e-5)


def test_a_learned_scale_stays_usable() -> None:
    params = numerics.params_from_range(0, 6, U8)
    quantizer = FakeQuantize(U8, params, learned=True, bounds=(0.0, 6.0))
    quantizer.scale.data.fill_(-1.0)
    assert torch.isfinite(quantizer(torch.ones(3))).all()
    assert float(quantizer.scale) > 0
    quantizer.scale.data.fill_(1.0)
    assert float(quantizer(torch.full((3,), 100.0)).max()) <= 6


def test_a_learned_power_of_two_is_one() -> None:
    spec = SPECS["power of two"]
    quantizer = FakeQuantize(spec, QuantParams(np.float32(0.25), np.int8(0)), learned=True)
    quantizer.scale.data.fill_(0.3)
    assert quantizer.params.scale == 0.5
    quantizer(torch.randn(5)).sum().backward()
    assert quantizer.scale.grad is not None


def test_the_range_of_an_activation_follows_training_and_nothing_else() -> None:
    quantizer = FakeQuantize(U8, numerics.params_from_range(0, 1, U8))
    before = quantizer.params.scale
    quantizer.eval()(torch.full((4,), 9.0))
    quantizer.train()(torch.full((4,), 9.0), observe=False)
    assert quantizer.params.scale == before
    quantizer(torch.full((4,), 9.0))
    assert quantizer.params.scale == pytest.approx(before * (1 + 8 * MOMENTUM), rel=1e-5)
    quantizer.observing = False
    after = quantizer.params.scale
    quantizer(torch.full((4,), 99.0))
    assert quantizer.params.scale == after


def test_a_fixed_range_neither_follows_nor_learns() -> None:
    params = numerics.params_from_range(0, 255 / 256, U8)
    quantizer = FakeQuantize(U8, params, learned=True, fixed=True)
    quantizer(torch.full((4,), 9.0))
    assert quantizer.params.scale == params.scale
    assert list(quantizer.parameters()) == []


def test_half_precision_comes_back_as_it_was() -> None:
    quantizer = FakeQuantize(S8, QuantParams(np.float32(0.5), np.int8(0)))
    assert quantizer(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
