"""What is left out of small files: equal numbers, long names, types and shapes that follow from the rest."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
from flow import check, quantize
from graphs import feeds_for, parse, run

import onnxq
from onnxq.graph.passes import simplify
from onnxq.graph.slim import slim

LONG = "model/" + "a_layer;" * 20

BODY = """g (float[N, 8, 16, 16] x) => (float[N, 8, 16, 16] y)
<float[16, 8, 3, 3] w, float[16, 16, 3, 3] v, float[8, 16, 3, 3] u> {
    a = Conv<pads = [1, 1, 1, 1]> (x, w) b = Relu (a) c = Conv<pads = [1, 1, 1, 1]> (b, v) d = Relu (c)
    e = Conv<pads = [1, 1, 1, 1]> (d, u) y = Neg (e)
}"""


def with_long_names():
    model = parse(BODY)
    for node in model.graph:
        node.outputs[0].name = node.outputs[0].name if node.op_type == "Neg" else LONG + node.outputs[0].name
    return model


def test_a_small_network_with_long_names_does_not_grow():
    flow = quantize(with_long_names())
    check(flow)
    size, before = (ir.to_proto(model).ByteSize() for model in (flow.int8, flow.model))
    assert size < before
    names = [name for node in flow.int8.graph for name in (node.name, node.outputs[0].name)]
    assert len(set(names)) == len(names)


def test_equal_numbers_are_stored_once():
    flow = quantize(parse(BODY))
    single = [v for v in flow.int8.graph.initializers.values() if v.const_value.size == 1]
    stored = [(v.dtype, v.const_value.numpy().item()) for v in single if v.dtype != ir.DataType.INT8]
    assert len(stored) == len(set(stored))
    zeros = {n.inputs[2].name for n in flow.int8.graph if n.op_type == "QuantizeLinear" and "x" not in n.name}
    assert len(zeros) <= 2


SHAPES = """g (float[N, 4, 8] x, int64[2] size) => (float[A, B] y) {
    a = Relu (x) b = Neg (a) r = Reshape (b, size) c = Neg (r) d = Neg (c) y = Relu (d)
}"""


def test_types_that_runtimes_infer_are_left_out_where_weights_are_few():
    model = simplify(parse(SHAPES))
    slim(model)
    typed = {
        value.name: value.shape for node in model.graph for value in node.outputs if value.type is not None
    }
    assert set(typed) == {"r", "c", "d", "y"}  # the rank of r follows from the number of sizes only
    assert all(len(shape) == 2 for shape in typed.values())


def test_types_stay_where_they_are_few_beside_the_weights():
    text = "g (float[N, 256] x) => (float[N, 256] y) <float[256, 256] w> { a = MatMul (x, w) y = Relu (a) }"
    model = simplify(parse(text))
    slim(model)
    assert all(value.type is not None for node in model.graph for value in node.outputs)


def test_numbers_of_different_types_or_shapes_stay_apart():
    model = parse(
        """g (float[N] x) => (float[N] y) <float a = {0}, float[1] b = {0}, float c = {-0.0}, float d = {0}>
        { p = Add (x, a) q = Add (p, b) r = Add (q, c) y = Add (r, d) }"""
    )
    expected = run(model, feeds := feeds_for(model))
    slim(model)
    assert set(model.graph.initializers) == {"a", "b", "c"}
    np.testing.assert_array_equal(expected, run(model, feeds))


def test_the_reason_why_a_file_is_larger_is_told(tmp_path):
    layers = " ".join(
        f"c{i} = Conv (c{i - 1}, w{i}) t{i} = Tanh (c{i})".replace("c0", "x") for i in range(1, 41)
    )
    layers = re.sub(r"Conv \(c(\d+)", r"Conv (t\1", layers)
    weights = ", ".join(f"float[2, 2, 1, 1] w{i}" for i in range(1, 41))
    model = parse(f"g (float[1, 2, 8, 8] x) => (float[1, 2, 8, 8] t40) <{weights}> {{ {layers} }}")
    ir.save(model, tmp_path / "float.onnx")
    data = [feeds_for(model, seed) for seed in range(4)]
    config = onnxq.QuantConfig(verify="off", correct=("none",))
    result = onnxq.quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", data=data, config=config)
    assert result.int8_bytes > result.float_bytes
    (told,) = [warning for warning in result.warnings if "LARGER THAN FLOAT" in warning]
    assert "weights are so few" in told
