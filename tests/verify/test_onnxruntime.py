"""What ONNX Runtime really runs, on cases whose answer is known."""

import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.verify.onnxruntime import kernels, unfused

INTEGERS = """g (float[N, 8] x) => (float[N, 4] y) <float s, uint8 z, int8[8, 4] w, float t, int8 o> {
    q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
    y = MatMul (d, v)
}"""


def saved(path, text, **given):
    model = parse(text, **given)
    for node in model.graph:
        node.name = node.outputs[0].name
    ir.save(model, path)
    return path


def test_an_integer_kernel_is_found(tmp_path):
    path = saved(tmp_path / "m.onnx", INTEGERS, s=0.1, z=128, w=1, t=0.1, o=0)
    assert kernels(path)["y"] == "MatMulIntegerToFloat"
    assert unfused(path, {"y": "MatMul"}) == ()


def test_an_integer_kernel_that_took_in_its_bias_is_found(tmp_path):
    text = """g (float[1, 4, 8] x) => (float[1, 4, 4] y)
    <float s, uint8 z, int8[8, 4] w, float t, int8 o, int32[4] b, float u> {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
        m = MatMul (d, v) c = DequantizeLinear (b, u) y = Add (m, c)
    }"""
    path = saved(tmp_path / "m.onnx", text, s=0.1, z=128, w=1, t=0.1, o=0, b=3, u=0.01)
    assert "m" not in kernels(path)
    assert "QGemm" in kernels(path).values()
    assert unfused(path, {"m": "MatMul"}) == ()


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (x, w)",
        "m = MatMul (x, w) y = Add (m, b)",
        "m = MatMul (x, w) a = Add (m, b) y = Relu (a)",
    ],
)
def test_a_float_kernel_is_found_whatever_it_was_fused_with(tmp_path, body):
    text = f"g (float[N, 8] x) => (float[N, 4] y) <float[8, 4] w, float[4] b> {{ {body} }}"
    path = saved(tmp_path / "m.onnx", text)
    name = "m" if body.startswith("m") else "y"
    assert unfused(path, {name: "MatMul"}) == (name,)
