"""Half precision, simulated in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse, run

from onnxq.graph.files import load
from onnxq.graph.half_precision.narrow import Narrowing, narrow
from onnxq.graph.half_precision.simulate import runnable, simulated, unrounded
from onnxq.graph.passes import plain
from onnxq.graph.passes.redundancy import RemoveUnusedPass

TEXT = """g (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w>
{ h = MatMul(x, w)  m = Mul(h, h)  y = Transpose<perm = [1, 0]>(m) }"""


def in_bfloat16(text=TEXT):
    model = plain(parse(text, opset=22, ir_version=10), 22)
    narrow(model, Narrowing(ir.DataType.BFLOAT16, {}))
    return model


def rounded(array):
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_each_result_is_rounded():
    model = in_bfloat16()
    (weights,) = [value.const_value.numpy() for value in model.graph.initializers.values()]
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    product = rounded(rounded(x) @ weights.astype(np.float32))
    (actual,) = run(simulated(model), {"x": x})
    np.testing.assert_array_equal(actual, rounded(product * product).T)


def test_the_given_model_stays():
    model = in_bfloat16()
    simulated(model)
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.BFLOAT16}


def test_other_models_are_run_as_they_are(tmp_path):
    path = tmp_path / "m.onnx"
    ir.save(parse("g (float[N] x) => (float[N] y) { y = Neg(x) }"), path)
    assert runnable(path) is path
    ir.save(in_bfloat16(), path)
    assert isinstance(runnable(path), ir.Model)


def test_outputs_without_a_name_stay_so():
    text = """g (float[2, 1, 4] x) => (float[1, 1, 3] h) <float[1, 12, 4] w, float[1, 12, 3] r>
    { y, h = LSTM <hidden_size = 3> (x, w, r) }"""
    model = in_bfloat16(text)
    RemoveUnusedPass()(model)
    assert "" in {value.name for node in model.graph for value in node.outputs}
    x = np.random.default_rng(0).normal(size=(2, 1, 4)).astype(np.float32)
    (expected,) = run(parse(text, opset=22, ir_version=10), {"x": x})
    np.testing.assert_allclose(run(simulated(model), {"x": x})[0], expected, atol=0.01)


def test_a_cast_rounds_and_names_stay():
    model = plain(
        parse(
            "g (float[N, 3] x) => (float[N, 3] y) { h = Cast<to = 10>(x)  n = Neg(h)  y = Cast<to = 1>(n) }"
        )
    )
    copy = simulated(model)
    x = np.array([[2049, 0.1, 1e5]], np.float32)
    (actual,) = run(copy, {"x": x})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(actual, -x.astype(np.float16).astype(np.float32))
    rounded_to = {value.name: value.producer().op_type for node in copy.graph for value in node.outputs}
    assert rounded_to["n"] == "Cast"


@pytest.mark.parametrize("dtype", [10, 16])
def test_types_that_a_file_leaves_out_are_inferred(tmp_path, dtype):
    text = """g (float[N, 3] x) => (float[N, 3] y) { h = Cast<to = TYPE>(x)  q = Mul(h, h)  y = Cast<to = 1>(q) }"""
    path = tmp_path / "m.onnx"
    ir.save(parse(text.replace("TYPE", str(dtype)), opset=18), path)
    x = np.array([[1.001, 3.14159, 0.1]], np.float32)
    half = x.astype(ir.DataType(dtype).numpy())
    np.testing.assert_array_equal(run(runnable(path), {"x": x})[0], (half * half).astype(np.float32))
    np.testing.assert_allclose(run(unrounded(load(path)), {"x": x})[0], x * x, rtol=1e-6)
