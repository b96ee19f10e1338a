"""The Q/DQ model: valid, close to the float one, with every constant stored once."""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from classifiers import CLASSIFIER, model_of

from calibrators.collect import collect
from calibrators.data.samples import Sample
from calibrators.methods import CALIBRATORS
from calibrators.session import open_session
from onnxq.calibration.qparams import compute_qparams, from_statistics, from_table
from onnxq.calibration.tables.table import Encoding, Table
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.core.plan import OPSET_OF_BLOCKS, QuantParams
from onnxq.graph.passes import simplify
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target


def quantized(body, feeds, target="onnxruntime", options=None, **graph):
    """The Q/DQ model for a graph's text with min-max ranges of ``feeds``, and its plan."""
    model = model_of(body, **graph)
    plan = make_plan(model, get_target(target), QuantConfig(**(options or {})))
    statistics = collect(model, plan.observed, [Sample("sample", feeds)])
    plan = compute_qparams(model, plan, from_statistics(statistics, CALIBRATORS["minmax"]))
    return model, insert_qdq(model, plan), plan


def run(model, feeds, **options):
    session = open_session(model, **options)
    return session.run(None, feeds)


def image(channels=4, size=8, batch=2):
    return {"x": np.random.default_rng(1).normal(size=(batch, channels, size, size)).astype(np.float32)}


def counts(model):
    return collections.Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("options", [{}, {"per_tensor": True}])
def test_a_classifier_stays_close_to_float_and_valid(target, options):
    model, int8, _ = quantized(CLASSIFIER, image(), target, options)
    onnx.checker.check_model(ir.to_proto(int8), full_check=True)
    (expected,), (actual,) = run(model, image()), run(int8, image())
    assert sqnr(expected, actual) > 25


@pytest.mark.parametrize(("activation", "weight"), [("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8")])
def test_other_types(activation, weight):
    model, int8, plan = quantized(CLASSIFIER, image(), options={"activation": activation, "weight": weight})
    assert {p.spec.dtype.name.lower() for p in plan.points if p.tensor == "w"} == {weight}
    assert sqnr(run(model, image())[0], run(int8, image(), optimize=False)[0]) > 25


def test_the_plan_is_exactly_what_is_computed_without_optimizations():
    _, int8, _ = quantized(CLASSIFIER, image())
    (fused,), (plain,) = run(int8, image()), run(int8, image(), optimize=False)
    assert sqnr(plain, fused) > 35


def test_the_callers_model_is_untouched():
    model = model_of(CLASSIFIER)
    before = ir.to_proto(model).SerializeToString()
    plan = make_plan(model, get_target("onnxruntime"), QuantConfig())
    statistics = collect(model, plan.observed, [Sample("s", image())])
    plan = compute_qparams(model, plan, from_statistics(statistics, CALIBRATORS["minmax"]))
    insert_qdq(model, plan)
    assert ir.to_proto(model).SerializeToString() == before


def test_names_of_nodes_inputs_and_outputs_stay():
    model, int8, _ = quantized(CLASSIFIER, image())
    assert {n.name for n in model.graph} <= {n.name for n in int8.graph}
    assert [v.name for v in int8.graph.inputs] == ["x"]
    assert [v.name for v in int8.graph.outputs] == ["y"]


def test_relu_nodes_are_kept():
    _, int8, _ = quantized(CLASSIFIER, image())
    assert counts(int8)["Relu"] == 2


def test_one_q_a_tensor_and_one_dq_a_reader():
    _, int8, _ = quantized(CLASSIFIER, image())
    readers = collections.Counter(v for n in int8.graph for v in n.inputs if v is not None)
    dequantized = [n.outputs[0] for n in int8.graph if n.op_type == "DequantizeLinear"]
    assert all(readers[value] == 1 for value in dequantized)
    sources = [n.inputs[0].name for n in int8.graph if n.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))


def test_shared_weights_and_biases_are_stored_once():
    body = """
        c = Conv <pads = [1,1,1,1]> (x, w2, b) d = Conv <pads = [1,1,1,1]> (x, w2, b)
        s = Sub (c, d) e = Conv <pads = [1,1,1,1]> (c, w2, b) y = Sub (s, e)
    """
    inputs = {"inputs": "float[N, 8, 8, 8] x", "outputs": "float[N, 8, 8, 8] y"}
    _, int8, plan = quantized(body, image(channels=8), **inputs)
    stored = [
        v for v in int8.graph.initializers.values() if v.dtype == ir.DataType.INT8 and v.shape.rank() == 4
    ]
    assert len(stored) == 1
    biases = [v for v in int8.graph.initializers.values() if v.dtype == ir.DataType.INT32]
    assert len(biases) == len({b.input_group for b in plan.biases}) < 3
    assert "w2" not in int8.graph.initializers


def test_a_dead_channel_keeps_its_bias():
    body = "c = Conv (x, dead, big) y = Tanh (c)"
    constants = "float[2,4,1,1] dead = {0, 0, 0, 0, 1, 2, 3, 4}, float[2] big = {0.3, 0.001}"
    graph = {"constants": constants, "outputs": "float[N, 2, 8, 8] y"}
    model, int8, plan = quantized(body, image(), **graph)
    expected, actual = run(model, image())[0], run(int8, image())[0]
    assert np.abs(expected[:, 0] - actual[:, 0]).max() < 0.2  # the step of the output's own grid
    scale = plan.params["dead"].scale[0] * plan.params["x"].scale
    assert abs(round(0.3 / scale) * scale - 0.3) < 1e-6


def test_tiny_weights_do_not_overflow_a_big_bias():
    body = "c = Conv (x, tiny, big) y = Tanh (c)"
    constants = "float[1,4,1,1] tiny = {1e-9, 2e-9, 1e-9, 1e-9}, float[1] big = {0.5}"
    graph = {"constants": constants, "outputs": "float[N, 1, 8, 8] y"}
    model, int8, _ = quantized(body, image(), **graph)
    assert sqnr(run(model, image())[0], run(int8, image())[0]) > 30


def test_quantized_graph_outputs_keep_their_names():
    body = "c = Conv (x, w) y = Conv <pads = [1,1,1,1]> (c, w2)"
    graph = {"outputs": "float[N, 8, 6, 6] y"}
    model, int8, _ = quantized(body, image(), options={"quantize_outputs": True}, **graph)
    assert [v.name for v in int8.graph.outputs] == ["y"]
    assert int8.graph.outputs[0].producer().op_type == "DequantizeLinear"
    assert sqnr(run(model, image())[0], run(int8, image())[0]) > 25


def test_bodies_read_captured_tensors_through_q_dq():
    body = """
        c = Conv (x, w)
        y = If (cond) <
            then_branch = g1 () => (float[N, 8, 6, 6] t) { t = Tanh (c) },
            else_branch = g2 () => (float[N, 8, 6, 6] e) { e = Neg (c) }
        >
    """
    feeds = {**image(), "cond": np.array(True)}
    graph = {"inputs": "float[N, 4, 8, 8] x, bool cond", "outputs": "float[N, 8, 6, 6] y"}
    model, int8, _ = quantized(body, feeds, **graph)
    for cond in (True, False):
        feeds["cond"] = np.array(cond)
        assert sqnr(run(model, feeds)[0], run(int8, feeds)[0]) > 25


def test_an_input_that_is_also_an_output():
    body = "c = Conv (x, w) y = Tanh (c)"
    graph = {"outputs": "float[N, 8, 6, 6] y, float[N, 4, 8, 8] x"}
    _, int8, _ = quantized(body, image(), **graph)
    np.testing.assert_array_equal(run(int8, image())[1], image()["x"])


def test_a_gemm_bias_of_one_value_is_spread_over_the_channels():
    body = "y = Gemm (x, m, one)"
    graph = {"inputs": "float[N, 8] x", "outputs": "float[N, 8] y", "constants": "float[1] one = {0.25}"}
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)}
    model, int8, _ = quantized(body, feeds, **graph)
    assert sqnr(run(model, feeds)[0], run(int8, feeds)[0]) > 25


# --- ways to store ----------------------------------------------------------------------------------


def test_weights_stored_in_float_lie_on_the_grid():
    """Their Q gives exactly the integers that other targets store: nothing is rounded a second time."""
    _, stored, _ = quantized(CLASSIFIER, image(), "tensorrt", {"float_type": "float32"})
    _, reals, _ = quantized(CLASSIFIER, image(), "tensorrt8")
    onnx.checker.check_model(ir.to_proto(reals), full_check=True)
    on_grid = {name for name in reals.graph.initializers if name.endswith("_on_grid")}
    assert on_grid == {"w_on_grid", "w2_on_grid", "fc_on_grid"}
    for name in on_grid:
        (use,) = reals.graph.initializers[name].uses()
        assert use.node.op_type == "QuantizeLinear"
        values, scale, zero = (value.const_value.numpy() for value in use.node.inputs)
        shape = [-1] + [1] * (values.ndim - 1)
        levels = np.rint(values / scale.reshape(shape)).astype(np.int8)
        expected = stored.graph.initializers[name.replace("_on_grid", "_quantized")].const_value.numpy()
        np.testing.assert_array_equal(levels, expected)
        assert use.node.attributes["axis"].as_int() == 0
        assert not zero.any()
    assert np.array_equal(run(stored, image(), optimize=False)[0], run(reals, image(), optimize=False)[0])


def test_vitis_has_nothing_but_powers_of_two():
    _, int8, plan = quantized(CLASSIFIER, image(), "vitis-xint8")
    scales = [node.inputs[1].const_value.numpy() for node in int8.graph if node.op_type == "DequantizeLinear"]
    assert scales
    assert all((np.frexp(scale)[0] == 0.5).all() for scale in scales)
    assert {group.spec.dtype for group in plan.groups.values()} == {ir.DataType.INT8}


def test_sixteen_bits():
    model, _, plan = quantized(CLASSIFIER, image(), "qnn", {"target": "qnn", "activation": "uint16"})
    assert {p.spec.dtype for p in plan.points if p.tensor == "x"} == {ir.DataType.UINT16}
    raised = simplify(model, OPSET_OF_BLOCKS)
    assert raised.graph.opset_imports[""] >= OPSET_OF_BLOCKS
    expected = run(model, image())[0]
    coarse = quantized(CLASSIFIER, image(), "qnn")[1]
    fine = insert_qdq(raised, plan)
    assert sqnr(expected, run(fine, image(), optimize=False)[0]) > sqnr(
        expected, run(coarse, image(), optimize=False)[0]
    )


def test_a_table_with_other_scales_does_not_bring_them_where_they_must_be_powers_of_two():
    model = model_of(CLASSIFIER)
    plan = make_plan(model, get_target("vitis-xint8"), QuantConfig())
    spec = plan.groups["x"].spec
    given = Encoding.of_params(spec, QuantParams(np.float32(0.1), np.int8(0)))
    table = Table(dict.fromkeys(plan.observed, given))
    scales = {
        float(p.scale)
        for name, p in compute_qparams(model, plan, from_table(table, plan)).params.items()
        if name in plan.observed
    }
    assert scales == {0.125}


def test_bits_that_stay_unused_are_cut_off_before_q():
    """QuantizeLinear saturates at the ends of uint8; a 4-bit grid ends at 15."""
    _, few, plan = quantized(CLASSIFIER, image(), "academic-w4a4")
    narrow = [g for g in plan.groups.values() if g.spec.reduce_bits and not g.constant]
    clips = {n.inputs[0].name: n for n in few.graph if n.op_type == "Clip"}
    assert narrow
    for group in narrow:
        params = plan.params[group.name]
        for tensor in group.tensors:
            low, high = (v.const_value.numpy() for v in clips[tensor].inputs[1:])
            assert low == pytest.approx((0 - float(params.zero_point)) * params.scale)
            assert high == pytest.approx((15 - float(params.zero_point)) * params.scale)


SHARED_WITH_BODY = """h = MatMul (x, big) k = ReduceSum <keepdims = 0> (h) c = Less (k, zero)
y = If (c) <then_branch = t () => (float[2, 32] a) { a = MatMul (h, big) },
            else_branch = e () => (float[2, 32] d) { n = MatMul (x, big) d = Neg (n) }>"""


@pytest.mark.parametrize("options", [{}, {"weight": "uint8"}, {"per_tensor": True}])
def test_bodies_read_the_integers_of_the_main_graph(options):
    rng = np.random.default_rng(0)
    numbers = ",".join(map(str, rng.normal(size=32 * 32).round(3)))
    graph = {
        "inputs": "float[2, 32] x",
        "outputs": "float[2, 32] y",
        "constants": f"float[32, 32] big = {{{numbers}}}, float zero = {{0}}",
    }
    values = rng.normal(size=(2, 32)).astype(np.float32)
    for feeds in ({"x": values}, {"x": -values}):
        model, int8, plan = quantized(SHARED_WITH_BODY, feeds, options=options, **graph)
        onnx.checker.check_model(ir.to_proto(int8), full_check=True)
        assert list(plan.integer_nodes.values()) == ["MatMul"]
        matrices = [v for v in int8.graph.initializers.values() if v.const_value.size == 32 * 32]
        assert len(matrices) == 1
        assert matrices[0].dtype != ir.DataType.FLOAT
        (expected,), (actual,) = run(model, feeds), run(int8, feeds)
        assert sqnr(expected, actual) > 30
