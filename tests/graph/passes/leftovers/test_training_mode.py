"""Dropout and BatchNormalization that were exported in training mode."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse, run

import onnxq
from onnxq.graph.passes import simplify
from onnxq.graph.passes.leftovers.training_mode import training_nodes

DROPOUT = "g (float[N,4] x) => (float[N,4] y) <float r = {{0.4}}, bool t = {{1}}> {{ a = Tanh (x) {} }}"
NORM = """g (float[N,3,8,8] x) => ({outputs}) <float[4,3,3,3] w, float[4] s, float[4] b, float[4] mean, float[4] var>
{{ c = Conv (x, w) y{more} = BatchNormalization <{mode}> (c, s, b, mean, var) }}"""
IMAGE = "float[N,4,h,w] y"
STEP = "float[4] m, float[4] v"


def norm(outputs=IMAGE, more="", mode="epsilon = 0.00001"):
    return NORM.format(outputs=outputs, more=more, mode=mode)


@pytest.mark.parametrize("opset", [12, 13, 17, 22])
@pytest.mark.parametrize(
    "node", ["y = Dropout (a, r, t)", "y = Dropout (a, , t)", "y, mask = Dropout (a, r, t)"]
)
def test_dropout_is_removed(opset, node, caplog):
    model = parse(DROPOUT.format(node), opset)
    assert len(training_nodes(model)) == 1
    after = simplify(model)
    assert op_counts(after) == {"Tanh": 1}
    assert "1 nodes were exported in training mode (Dropout" in caplog.text
    np.testing.assert_allclose(run(after)[0], np.tanh(feeds_for(model)["x"]), rtol=1e-6)


def test_the_mode_as_a_node_and_in_a_branch(caplog):
    text = """g (float[N,4] x, bool c) => (float[N,4] y) <float r = {0.4}> {
        y = If (c) <then_branch = t () => (float[N,4] u) { on = Constant <value = bool {1}> () u = Dropout (x, r, on) },
                    else_branch = e () => (float[N,4] v) { v = Neg (x) }> }"""
    model = parse(text)
    assert len(training_nodes(model)) == 1
    after = simplify(model)
    assert not training_nodes(after)
    assert "training mode" in caplog.text
    feeds = feeds_for(model)
    np.testing.assert_array_equal(run(after, feeds)[0], feeds["x"])


def test_a_mask_that_is_read_is_all_true():
    text = DROPOUT.format("y, mask = Dropout (a, r, t)").replace("y) <", "y, bool[N,4] mask) <")
    after = simplify(parse(text))
    assert not training_nodes(after)
    assert run(after)[1].all()


def test_a_mode_that_the_caller_gives_stays(caplog):
    text = (
        "g (float[N,4] x, bool t) => (float[N,4] y) <float r = {0.4}> { a = Tanh (x) y = Dropout (a, r, t) }"
    )
    assert op_counts(simplify(parse(text))) == {"Tanh": 1, "Dropout": 1}
    assert "training" not in caplog.text


@pytest.mark.parametrize("opset", [14, 15, 17])
@pytest.mark.parametrize("more", [", m, v", ""])
def test_batch_normalization_uses_its_own_statistics(opset, more, caplog):
    after = simplify(parse(norm(more=more, mode="training_mode = 1"), opset))
    assert op_counts(after) == {"Conv": 1}
    assert "BatchNormalization" in caplog.text
    assert_same_outputs(parse(norm(), opset), after)


@pytest.mark.parametrize("opset", [9, 12, 13])
def test_five_outputs_of_older_opsets(opset, caplog):
    after = simplify(parse(norm(more=", m, v, o, p"), opset))
    assert op_counts(after) == {"Conv": 1}
    assert "training mode" in caplog.text
    assert_same_outputs(parse(norm(), opset), after)


def test_running_statistics_that_are_outputs_do_not_run_on():
    model = parse(norm(f"{IMAGE}, {STEP}", ", m, v", "training_mode = 1"), 15)
    after = simplify(model)
    assert [value.name for value in after.graph.outputs] == ["y", "m", "v"]
    (plain,) = run(parse(norm(), 15))
    image, mean, variance = run(after)
    np.testing.assert_allclose(image, plain, rtol=1e-4, atol=1e-5)
    for name, given in (("mean", mean), ("var", variance)):
        np.testing.assert_array_equal(given, model.graph.initializers[name].const_value.numpy())


def test_is_test_of_the_oldest_opsets(caplog):
    """Below opset 7 an attribute tells the mode, and ONNX's converter takes models in inference mode only."""
    model = parse(norm(mode="epsilon = 0.00001"), 6, ir_version=3, check=False)
    for value in model.graph.initializers.values():  # listed as inputs, as the format demanded then
        model.graph.inputs.append(value)
    assert len(training_nodes(model)) == 1
    after = simplify(model)
    assert "training mode" in caplog.text
    assert op_counts(after) == {"Conv": 1}
    assert_same_outputs(parse(norm(), 13), after)


def test_inference_mode_is_no_news(caplog):
    simplify(parse(norm(mode="training_mode = 0"), 15))
    simplify(parse(DROPOUT.format("y = Dropout (a, r)"), 13))
    assert "training" not in caplog.text


NET = """g (float[N,4,12,12] x) => (float[N,200] y)
<float[8,4,3,3] w, float[8] b, float[8] s, float[8] c, float[8] mean, float[8] var, float[8,200] v, float r = {0.5},
 bool t = {1}> {
    a = Conv (x, w, b) n, m, u = BatchNormalization <training_mode = 1> (a, s, c, mean, var) d = Dropout (n, r, t)
    e = Relu (d) p = GlobalAveragePool (e) f = Flatten (p) y = MatMul (f, v)
}"""


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_it_is_quantized_and_compared_in_inference_mode(tmp_path, mode, caplog):
    onnx.save(ir.to_proto(parse(NET, 15)), tmp_path / "m.onnx")
    data = [{"x": x} for x in np.random.default_rng(0).standard_normal((15, 1, 4, 12, 12)).astype(np.float32)]
    if mode == "static":
        config = onnxq.QuantConfig(threads=1, verify="off")
        result = onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx", data, config)
        assert not result.plan.float_nodes
    else:
        result = onnxq.quantize_dynamic(tmp_path / "m.onnx", tmp_path / "o.onnx", None, data)
    assert result.quality.sqnr > 20
    assert caplog.text.count("training mode") == 1
