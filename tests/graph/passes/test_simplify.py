"""Whole models, and everything that is about more than one pass."""

from __future__ import annotations

import re
import time

import numpy as np
import onnx
import onnx.checker
import onnx.printer
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse

import zoo
from onnxq.core.errors import ModelError
from onnxq.graph.files import load
from onnxq.graph.passes import SIMPLIFY, simplify

LITE0 = {"Conv": 49, "Clip": 33, "Add": 9, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}


def randomize(model: ir.Model) -> None:
    """Random weights instead of constant ones, which would hide most mistakes."""
    rng = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        old = value.const_value.numpy()
        if old.dtype == np.float32 and old.size > 1:
            fan_in = max(1, int(np.prod(old.shape[1:])))
            spread = rng.standard_normal(old.shape, np.float32) / np.sqrt(fan_in)
            new = spread if old.ndim > 1 else np.abs(spread) + 0.5
            value.const_value = ir.tensor(new.astype(np.float32), name=value.name)


@pytest.mark.parametrize("variant", ["dynamo", "dynamo-unoptimized", "torchscript"])
def test_every_export_of_lite0_becomes_the_same_graph(lite0_models, variant):
    before = load(lite0_models[variant])
    started = time.process_time()
    after = simplify(before)
    assert time.process_time() - started < 5, "it takes a fraction of a second"
    assert op_counts(after) == LITE0
    feeds = {"input": np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)}
    assert_same_outputs(before, after, feeds)


@pytest.mark.slow
def test_light_models(light_model):
    before = load(light_model)
    after = simplify(before)
    assert_same_outputs(before, after)
    counts = op_counts(after)
    assert not counts.keys() & {"ConstantOfShape", "Unsqueeze", "Mul", "Sum", "Dropout", "Identity"}
    convs = [n for n in after.graph if n.op_type in ("Conv", "Gemm")]
    assert all(v.is_initializer() for n in convs for v in n.inputs[1:])


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "inception_v2"])
def test_light_models_with_random_weights(name):
    before = load(zoo.light(name))
    _weights_from_constant_of_shape(before)
    randomize(before)
    after = simplify(before)
    counts = op_counts(after)
    folded = {"resnet50": 0, "densenet121": 62, "inception_v2": 0}[name]
    assert counts.get("BatchNormalization", 0) == folded, "what stands after a Concat or before a Relu stays"
    assert_same_outputs(before, after)


def _weights_from_constant_of_shape(model: ir.Model) -> None:
    """Write the weights that these models compute as plain initializers."""
    for node in list(model.graph):
        if node.op_type == "ConstantOfShape":
            shape = node.inputs[0].const_value.numpy()
            tensor = ir.tensor(np.ones(shape, np.float32), name=node.outputs[0].name)
            value = ir.Value(
                name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
            )
            model.graph.register_initializer(value)
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)


def test_weights_in_constant_nodes_at_opset_9_and_11():
    for opset in (9, 11):
        proto = ir.to_proto(
            parse(
                """g (float[N,3,8,8] x) => (float[N,4,6,6] y)
                <float[4,3,3,3] w, float[4] s, float[4] t, float[4] u, float[4] var> {
                    c = Conv(x, w)
                    n = BatchNormalization(c, s, t, u, var)
                    y = Relu(n)
                }""",
                opset=opset,
            )
        )
        constants = [
            onnx.helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer
        ]
        nodes = [*constants, *proto.graph.node]
        del proto.graph.initializer[:], proto.graph.node[:]
        proto.graph.node.extend(nodes)
        onnx.checker.check_model(proto)
        before = ir.from_proto(proto)
        after = simplify(before)
        assert op_counts(after) == {"Conv": 1, "Relu": 1}
        assert after.graph[0].inputs[1].name == "w"
        assert_same_outputs(before, after)


MANY = """g (float[N,3,8,8] x, bool k, int64 n) => (float[N,4,8,8] y, float[N,4,8,8] z, float[N,3,8,8] x2)
<float[4,3,3,3] w, float[4,4,3,3] v, float[4] s, float[4] t, float[4] u, float[4] var> {
    x2 = Identity(x)
    c = Conv <pads=[1,1,1,1]> (x, w)
    h = BatchNormalization(c, s, t, u, var)
    one = Constant <value = bool {1}> ()
    y = Loop (n, one, h) <body = b (int64 i, bool ci, float[N,4,8,8] a) => (bool co, float[N,4,8,8] o) {
        co = Identity(ci)
        d = Conv <pads=[1,1,1,1]> (a, v)
        e = BatchNormalization(d, s, t, u, var)
        f = Add(e, h)
        o = Tanh(f)
    }>
    z = If (k) <
        then_branch = p () => (float[N,4,8,8] q) {
            e = Conv <pads=[1,1,1,1]> (x, w)
            q = BatchNormalization(e, s, t, u, var)
        },
        else_branch = r () => (float[N,4,8,8] q2) {
            e = Conv <pads=[1,1,1,1]> (h, v)
            q2 = Identity(e)
        }>
}"""


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_bodies_that_capture_and_share(opset):
    before = parse(MANY, opset=opset)
    after = simplify(before)
    counts = op_counts(after)
    assert counts["Conv"] == 4
    assert "BatchNormalization" not in counts
    onnx.checker.check_model(ir.to_proto(after))
    for choice in (True, False):
        feeds = feeds_for(before, n=np.array(3), k=np.array(choice))
        assert_same_outputs(before, after, feeds)


def test_names_are_unique_over_all_bodies():
    after = simplify(parse(MANY))
    nodes = list(ir.traversal.RecursiveGraphIterator(after.graph))
    assert len({n.name for n in nodes}) == len(nodes)
    tensors = [o.name for n in nodes for o in n.outputs] + [i.name for i in after.graph.inputs]
    assert len(set(tensors)) == len(tensors)
    assert all(tensors)


@pytest.mark.parametrize("text", [MANY, "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"])
def test_idempotent(text):
    once = simplify(parse(text))
    twice = simplify(once)
    assert ir.to_proto(twice).SerializeToString(deterministic=True) == ir.to_proto(once).SerializeToString(
        deterministic=True
    )


def test_lite0_idempotent(lite0_models):
    once = simplify(load(lite0_models["torchscript"]))
    copy = once.clone()
    assert [type(p).__name__ for p in SIMPLIFY if p(copy).modified] == []


def printed(model: ir.Model) -> str:
    """The model as text, without the names of constants, which nobody uses."""
    return re.sub(r"(tensor = \w+(\[\d*\])?) \w+ {", r"\1 {", onnx.printer.to_text(ir.to_proto(model)))


def test_the_given_model_is_not_changed():
    before = parse(MANY, opset=9)
    text = printed(before)
    weights = {name: value.const_value.numpy().copy() for name, value in before.graph.initializers.items()}
    simplify(before)
    assert printed(before) == text
    for name, value in before.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), weights[name])


def test_the_models_metadata_stays_and_stack_traces_go():
    before = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    before.metadata_props["names"] = "cat,dog"
    before.graph[0].metadata_props["stack_trace"] = "line 1"
    before.graph.metadata_props["note"] = "kept in the original"
    after = simplify(before)
    assert after.metadata_props == {"names": "cat,dog"}
    assert not after.graph[0].metadata_props
    assert before.graph[0].metadata_props == {"stack_trace": "line 1"}
    assert before.graph.metadata_props == {"note": "kept in the original"}


def test_an_input_that_is_an_output():
    before = parse("g (float[N,4] x) => (float[N,4] x, float[N,4] y) { y = Relu(x) }")
    after = simplify(before)
    assert [v.name for v in after.graph.outputs] == ["x", "y"]
    assert after.graph.outputs[0] is after.graph.inputs[0]


def test_an_initializer_that_is_an_output():
    before = parse("g (float[N,4] x) => (float[N,4] y, float[4,4] w) <float[4,4] w> { y = MatMul(x, w) }")
    after = simplify(before)
    assert_same_outputs(before, after)


def test_tied_weights_stay_one():
    before = parse(
        """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v> {
            a = MatMul(x, w)
            r = Relu(a)
            y = MatMul(r, v)
        }""",
        v=np.arange(16).reshape(4, 4),
        w=np.arange(16).reshape(4, 4),
    )
    after = simplify(before)
    assert len(after.graph.initializers) == 1
    assert_same_outputs(before, after)


def test_local_functions_are_inlined():
    before = parse(
        """g (float[N,4] x) => (float[N,4] y) <float[4,4] w> {
            h = local.layer <slope=0.2> (x, w)
            y = local.layer <slope=0.5> (h, w)
        }""",
        functions="""<opset_import: ["" : 13], domain: "local"> layer <slope> (x, w) => (y) {
            m = MatMul(x, w)
            y = LeakyRelu <alpha: float = @slope> (m)
        }""",
    )
    after = simplify(before)
    assert not after.functions
    assert op_counts(after) == {"MatMul": 2, "LeakyRelu": 2}
    assert_same_outputs(before, after)


def test_functions_of_another_opset_are_an_error():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13, "local" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = local.f(x) }
        <opset_import: ["" : 12], domain: "local"> f (x) => (y) { y = Relu(x) }"""
    )
    with pytest.raises(ModelError, match="Opset mismatch"):
        simplify(ir.from_proto(proto))


def test_custom_operators_pass_through():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13, "my.domain" : 1]>
        g (float[N,4] x) => (float[N,4] y) <float[4] k = {1, 2, 3, 4}> {
            a = my.domain.Mystery(x, k)
            b = my.domain.Mystery(x, k)
            y = Add(a, b)
        }"""
    )
    after = simplify(ir.from_proto(proto))
    assert op_counts(after) == {"Mystery": 2, "Add": 1}, "they may be random, so they are not merged"
