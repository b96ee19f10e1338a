"""Types after operators of other domains, which ONNX's own inference does not give."""

import onnx
import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.graph.passes import simplify
from onnxq.graph.passes.shapes import InferForeignTypesPass

TEXT = "g (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w> { a = MatMul (x, w) g = Tanh (a) y = MatMul (g, w) }"


def with_operator(domain, op_type):
    """The middle operator is a foreign one."""
    proto = ir.to_proto(parse(TEXT))
    proto.graph.node[1].domain, proto.graph.node[1].op_type = domain, op_type
    proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return ir.from_proto(proto)


def value(model, name):
    return next(v for node in model.graph for v in node.outputs if v.name == name)


def test_the_runtime_tells_the_type_and_the_shape():
    model = with_operator("com.microsoft", "Gelu")
    assert InferForeignTypesPass()(model).modified
    assert value(model, "g").dtype == ir.DataType.FLOAT
    assert value(model, "g").shape[1] == 8
    assert not InferForeignTypesPass()(model).modified


def test_what_follows_has_types_too():
    assert all(
        v.dtype == ir.DataType.FLOAT
        for n in simplify(with_operator("com.microsoft", "Gelu")).graph
        for v in n.outputs
    )


@pytest.mark.parametrize("op_type", ["Unheard", "Gelu"])
def test_a_domain_that_the_runtime_does_not_know_changes_nothing(op_type):
    model = with_operator("org.example", op_type)
    assert not InferForeignTypesPass()(model).modified
    assert value(model, "g").type is None


def test_a_standard_model_is_not_opened(monkeypatch):
    monkeypatch.setattr("onnxq.graph.passes.shapes.open_session", None)
    assert not InferForeignTypesPass()(parse(TEXT)).modified
