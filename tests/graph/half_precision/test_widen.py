"""Models in half precision: widened to float32 inside, with the types and about the outputs that they had."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse, run

import onnxq
from calibrators.onnx_files import stored_tensors
from onnxq.graph.half_precision.widen import LEAST_BYTES, store_in_half
from onnxq.graph.passes import simplify

HALF = ir.DataType.FLOAT16

INSIDE = """g (float[N, 16] x) => (float[N, 32] y) <float16[16, 32] w, float16[32] b>
{ h = Cast<to=10>(x)  m = MatMul(h, w)  a = Add(m, b)  y = Cast<to=1>(a) }"""

WHOLE = """g (float16[N, 16] x) => (float16[N, 32] y, float16[N, 16] x2) <float16[16, 32] w>
{ m = MatMul(x, w)  y = Relu(m)  x2 = Neg(x) }"""

BODIES = """g (float16[N, 16] x, bool k) => (float16[N, 32] y) <float16[16, 32] w, int64 count = {3}, bool yes = {1}>
{
    y = If(k) <then_branch = t () => (float16[N, 32] a) { a = MatMul(x, w) },
               else_branch = e () => (float16[N, 32] d) {
        s = MatMul(x, w)
        d = Loop(count, yes, s) <body = l (int64 i, bool c, float16[N, 32] v) => (bool o, float16[N, 32] u)
            { o = Identity(c)  u = Tanh(v) }>
    }>
}"""

GENERATED = """g (int64[2] x) => (float16[A, B] y)
{ c = ConstantOfShape<value = float16[1] {15872}>(x)  y = Neg(c) }"""
"""Attributes hold half precision too; 15872 are the bits of 1.5."""


@pytest.mark.parametrize(("text", "casts"), [(INSIDE, 0), (WHOLE, 3), (BODIES, 2), (GENERATED, 1)])
def test_a_widened_model_computes_in_float32(text, casts, caplog):
    before = parse(text, opset=15)
    with caplog.at_level(logging.WARNING):
        after = simplify(before)
    assert "widened to float32" in caplog.text
    assert op_counts(after).get("Cast", 0) == casts
    assert not any(t.dtype == HALF for t in stored_tensors(after))
    for given in ({"k": np.array(True)}, {"k": np.array(False)}) if "k)" in text else ({},):
        assert_same_outputs(before, after, feeds_for(before, **given), tolerance=5e-3)


def test_float16_that_is_only_stored_is_no_cause_for_a_warning(caplog):
    model = parse(
        """g (float[N, 16] x) => (float[N, 32] y) <float16[16, 32] h>
        { w = Cast<to=1>(h)  y = MatMul(x, w) }"""
    )
    after = simplify(model)
    assert not caplog.text
    assert op_counts(after) == {"MatMul": 1}
    assert_same_outputs(model, after, tolerance=1e-6)


def test_the_given_model_stays_as_it_is():
    model = parse(BODIES, opset=15)
    simplify(model)
    kinds = [value.dtype for graph in model.graphs() for value in (*graph.inputs, *graph.outputs)]
    assert HALF in kinds
    assert ir.DataType.FLOAT not in kinds


STORED = """g (float[N, 16] x) => (float[N, 32] y)
<float[16, 32] exact, float[16, 32] other, float[1, 32] small>
{ a = MatMul(x, exact)  b = MatMul(x, other)  c = Add(a, b)  y = Add(c, small) }"""


def test_what_half_precision_holds_exactly_is_stored_in_it():
    exact = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float16)
    before = parse(STORED, exact=exact, small=1.5)
    after = before.clone()
    store_in_half(after)
    assert op_counts(after) == {"Cast": 1, "MatMul": 2, "Add": 2}
    (half,) = [tensor for tensor in stored_tensors(after) if tensor.dtype == HALF]
    assert half.nbytes == exact.nbytes >= LEAST_BYTES // 2
    for one, other in zip(run(before), run(after), strict=True):
        np.testing.assert_array_equal(one, other)


FLOAT16_NETWORK = """g (float16[N, 16, 8, 8] x) => (float16[N, 32, 16, 16] y)
<float16[32, 16, 3, 3] w, float16[32, 32, 2, 2] t>
{ c = Conv<pads=[1, 1, 1, 1]>(x, w)  r = Relu(c)  y = ConvTranspose<strides=[2, 2]>(r, t) }"""


@pytest.mark.parametrize("options", [{}, {"target": "openvino"}, {"mode": "dynamic", "include": ["op:Conv"]}])
def test_a_network_in_float16_is_quantized_and_becomes_smaller(tmp_path, options):
    model = parse(FLOAT16_NETWORK, opset=15)
    ir.save(model, tmp_path / "half.onnx")
    feeds = [feeds_for(model, seed) for seed in range(8)]
    config = onnxq.QuantConfig(**options)
    call = onnxq.quantize_dynamic if config.mode == "dynamic" else onnxq.quantize_static
    result = call(tmp_path / "half.onnx", tmp_path / "int8.onnx", data=feeds, config=config)
    assert result.plan.integer_nodes
    assert result.quality.sqnr > 30
    assert result.int8_bytes < result.float_bytes
    written = ir.load(tmp_path / "int8.onnx")
    assert [value.dtype for value in (*written.graph.inputs, *written.graph.outputs)] == [HALF, HALF]


def test_bfloat16_inside_is_compared_with_the_widened_model(tmp_path):
    """ONNX Runtime's CPU provider has no kernels for the given one."""
    model = parse(INSIDE.replace("float16", "bfloat16").replace("to=10", "to=16"), opset=15)
    ir.save(model, tmp_path / "half.onnx")
    feeds = [feeds_for(model, seed) for seed in range(8)]
    result = onnxq.quantize_static(tmp_path / "half.onnx", tmp_path / "int8.onnx", data=feeds)
    assert list(result.plan.integer_nodes.values()) == ["Gemm"]
    assert result.quality.sqnr > 30
