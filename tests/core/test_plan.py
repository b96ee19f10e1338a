"""Scales in half precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.core.plan import LEAST_SCALE, QuantParams

ZERO = np.zeros((), np.int8)


def rounded(scale, dtype=ir.DataType.FLOAT16):
    return QuantParams(np.asarray(scale, np.float32), ZERO).rounded(dtype).scale


@pytest.mark.parametrize(("scale", "expected"), [
    ([1e-9, 0.01], [LEAST_SCALE, 0.01]),  # a channel of weights that are almost zero
    ([1e-9, 1e-8], [1e-9, 1e-8]),  # all are small: float32 it stays
    (1e-9, 1e-9),
    ([1e5, 0.01], [1e5, 0.01]),
])  # fmt: skip
def test_tiny_scales_of_single_channels_are_raised(scale, expected):
    np.testing.assert_allclose(rounded(scale), expected, rtol=1e-3)


def test_bfloat16_and_float32_hold_all_scales():
    assert rounded([1e-9, 0.01], ir.DataType.BFLOAT16)[0] == pytest.approx(1e-9, rel=1e-2)
    assert rounded([1e-9, 0.01], ir.DataType.FLOAT)[0] == np.float32(1e-9)
