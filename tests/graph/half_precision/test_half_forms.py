"""Which inputs and outputs of a node may be in half precision."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.graph.half_precision.half_forms import HalfForm, half_form
from onnxq.graph.passes import plain

HALF, BFLOAT = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def form(text, dtype=HALF, opset=19, **given):
    model = plain(parse(text, opset=opset, **given), opset)
    return half_form(model.graph[0], dtype, model.graph.opset_imports)


def both(inputs, outputs):
    return HalfForm(frozenset(inputs), frozenset(outputs))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", both({0}, {0})),
        (
            "g (float[1, 1, 2, 2] x, float[4] s) => (float[A, B, C, D] y) { y = Resize(x, , s) }",
            both({0}, {0}),  # scales are float32 in any case
        ),
        ("g (float[N] x) => (int64[N] y) { y = Cast<to=7>(x) }", both({0}, set())),
        ("g (int64[N] x) => (float[N] y) { y = Cast<to=1>(x) }", both(set(), {0})),
        (
            "g (float[1, A, 4] b, float[1, 1, A] s) => (int64[C, 3] y) { y = NonMaxSuppression(b, s) }",
            None,
        ),
        (
            "g (float[N] a, float[N] b, float[N] c) => (float[M] y) { y = Concat<axis=0>(a, b, c) }",
            both({0, 1, 2}, {0}),
        ),
    ],
)
def test_schemas_tell(text, expected):
    assert form(text) == expected


def test_bfloat16_came_later():
    text = "g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) <float[3, 2, 1, 1] w> { y = Conv(x, w) }"
    assert form(text, BFLOAT, opset=21) is None
    assert form(text, BFLOAT, opset=22) == both({0, 1}, {0})


def test_sequences_keep_their_type():
    text = """g (float[N] x, int64 i) => (float[N] y)
    { s = SequenceConstruct(x, x)  y = SequenceAt(s, i) }"""
    model = plain(parse(text), 13)
    assert all(half_form(node, HALF, model.graph.opset_imports) is None for node in model.graph)


def test_operators_of_onnx_runtime_have_schemas_too():
    node = ir.node(
        "Gelu", [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))], domain="com.microsoft"
    )
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    assert half_form(node, HALF, {"": 17, "com.microsoft": 1}) == both({0}, {0})


def test_an_unknown_operator_stays_in_float32():
    node = ir.node("Mystery", [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))], domain="own")
    assert half_form(node, HALF, {"": 17, "own": 1}) is None
