"""Every form of the weighted operators, and what stands beside them, through the whole flow."""

import pytest

from flow import check, quantize
from graphs import parse

X = "float[N, 8, 8, 8] x"
SAME = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"

CONVOLUTIONS = {
    "1d": "g (float[N, 4, 16] x) => (float[N, 8, 16] y) <float[8, 4, 3] w, float[8] b> "
    "{ c = Conv <pads = [1, 1]> (x, w, b) y = Tanh (c) }",
    "3d": "g (float[N, 2, 4, 5, 6] x) => (float[N, 4, 2, 3, 4] y) <float[4, 2, 3, 3, 3] w, float[4] b> "
    "{ c = Conv (x, w, b) y = Tanh (c) }",
    "depthwise": f"g ({X}) => (float[N, 8, 8, 8] y) <float[8, 1, 3, 3] w, float[8] b> "
    f"{{ c = Conv <{SAME}, group = 8> (x, w, b) y = Tanh (c) }}",
    "depthwise-multiplier": f"g ({X}) => (float[N, 16, 8, 8] y) <float[16, 1, 3, 3] w> "
    f"{{ c = Conv <{SAME}, group = 8> (x, w) y = Tanh (c) }}",
    "grouped": f"g ({X}) => (float[N, 6, 8, 8] y) <float[6, 4, 3, 3] w, float[6] b> "
    f"{{ c = Conv <{SAME}, group = 2> (x, w, b) y = Tanh (c) }}",
    "dilated": f"g ({X}) => (float[N, 8, 4, 4] y) <float[8, 8, 3, 3] w> "
    "{ c = Conv <dilations = [2, 2]> (x, w) y = Tanh (c) }",
    "strided": f"g ({X}) => (float[N, 8, 4, 3] y) <float[8, 8, 1, 3] w> "
    "{ c = Conv <strides = [2, 2]> (x, w) y = Tanh (c) }",
    "same-upper": f"g ({X}) => (float[N, 8, 4, 4] y) <float[8, 8, 3, 3] w> "
    '{ c = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w) y = Tanh (c) }',
    "same-lower": f"g ({X}) => (float[N, 8, 4, 4] y) <float[8, 8, 3, 3] w> "
    '{ c = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w) y = Tanh (c) }',
    "valid": f"g ({X}) => (float[N, 8, 6, 6] y) <float[8, 8, 3, 3] w> "
    '{ c = Conv <auto_pad = "VALID"> (x, w) y = Tanh (c) }',
    "padded-unevenly": f"g ({X}) => (float[N, 8, 9, 7] y) <float[8, 8, 3, 3] w, float[8] b> "
    "{ c = Conv <pads = [2, 0, 1, 1]> (x, w, b) y = Tanh (c) }",
    "one-by-one": f"g ({X}) => (float[N, 8, 8, 8] y) <float[8, 8, 1, 1] w, float[8] b> "
    "{ c = Conv (x, w, b) r = Relu (c) d = Conv (r, w, b) y = Tanh (d) }",
    "one-channel": "g (float[N, 1, 8, 8] x) => (float[N, 1, 6, 6] y) <float[1, 1, 3, 3] w, float[1] b> "
    "{ c = Conv (x, w, b) y = Tanh (c) }",
}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, target):
    flow = quantize(parse(CONVOLUTIONS[name]), target)
    check(flow, at_least=25)
    assert flow.floats == {"Tanh"}
