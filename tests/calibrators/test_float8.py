"""ONNX Runtime takes and gives the bytes of FP8; arrays have its type."""

import ml_dtypes
import numpy as np
from graphs import parse

from calibrators.float8 import run
from calibrators.session import open_session

FP8 = ml_dtypes.float8_e4m3fn

ALL = np.arange(256).astype(np.uint8).view(FP8)

TEXT = """g (float[N] x, float8e4m3fn[M] q) => (float8e4m3fn[N] r, float[M] y) <float s, float8e4m3fn z>
{ r = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }"""


def test_bytes_go_in_and_out():
    session = open_session(parse(TEXT, s=0.5, z=np.zeros((), FP8), opset=19))
    numbers = ALL[np.isfinite(ALL.astype(np.float32))]
    x = np.array([1.0, -300.0, 0.26], np.float32)
    levels, reals = run(session, ["r", "y"], {"x": x, "q": numbers})
    assert levels.dtype == FP8
    np.testing.assert_array_equal(levels, (x / 0.5).clip(-448, 448).astype(FP8))
    np.testing.assert_array_equal(reals, numbers.astype(np.float32) * 0.5)
