"""Which edges are quantized, which share parameters, and what is said of the rest."""

import math

import onnx_ir as ir
import pytest
from classifiers import CLASSIFIER, model_of

from onnxq.core.config import QuantConfig
from onnxq.core.errors import TargetError
from onnxq.core.plan import GRAPH_OUTPUT
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target


def plan_of(
    body, target="onnxruntime", inputs="float[N, 4, 8, 8] x", outputs="float[N, 3] y", constants="", **options
):
    model = model_of(body, inputs, outputs, constants)
    return make_plan(model, get_target(target), QuantConfig(**options))


def edges(plan):
    return {(point.tensor, point.consumer.split("_node")[0], point.input_index) for point in plan.points}


def tensors(plan):
    return {point.tensor for point in plan.points}


def ops(plan):
    return sorted(plan.integer_nodes.values())


def test_a_classifier_is_quantized_throughout():
    plan = plan_of(CLASSIFIER)
    assert ops(plan) == ["Add", "Conv", "Conv", "Flatten", "Gemm", "GlobalAveragePool"]
    assert not plan.float_nodes


def test_q_stands_after_the_relu_it_fuses_with():
    plan = plan_of(CLASSIFIER)
    assert {"r", "r2"} <= tensors(plan)
    assert not {"c", "a"} & tensors(plan)
    assert plan.groups["r"].bounds == (0, math.inf)


def test_weights_are_per_channel_on_the_output_axis():
    plan = plan_of(CLASSIFIER)
    specs = {point.tensor: point.spec for point in plan.points}
    assert specs["w"].axis == 0
    assert specs["fc"].axis == 0
    assert specs["w"].symmetric
    assert specs["w"].dtype == ir.DataType.INT8
    assert specs["r"].dtype == ir.DataType.UINT8


@pytest.mark.parametrize(("trans", "axis"), [(0, 1), (1, 0)])
def test_gemm_axis_follows_transb(trans, axis):
    plan = plan_of(f"y = Gemm <transB = {trans}> (x, m)", inputs="float[N, 8] x", outputs="float[N, 8] y")
    assert next(point.spec.axis for point in plan.points if point.tensor == "m") == axis


def test_per_tensor_option():
    plan = plan_of(CLASSIFIER, per_tensor=True)
    assert all(point.spec.axis is None for point in plan.points)


def test_a_flatten_shares_the_parameters_of_its_input():
    plan = plan_of(CLASSIFIER)
    group = next(g for g in plan.groups.values() if "f" in g.tensors)
    assert group.tensors == ("p", "f")
    assert group.observed_tensors == ("p",)
    assert "f" not in plan.observed


def test_biases_take_their_scale_from_input_and_weight():
    plan = plan_of(CLASSIFIER)
    bias = next(b for b in plan.biases if b.tensor == "b")
    assert (bias.input_group, bias.weight_group) == ("x", "w")


def test_graph_outputs_stay_float_unless_asked():
    body = "y = Conv <pads = [1, 1, 1, 1]> (x, w)"
    kept = plan_of(body, outputs="float[N, 8, 8, 8] y")
    assert not kept.points
    assert "is a graph output" in next(iter(kept.float_nodes.values())).reason
    asked = plan_of(body, outputs="float[N, 8, 8, 8] y", quantize_outputs=True)
    assert ("y", GRAPH_OUTPUT, 0) in edges(asked)


def test_a_float_reader_of_a_convolution_reads_through_q_dq():
    plan = plan_of(
        "c = Conv (x, w) y = Tanh (c)",
        outputs="float[N, 8, 6, 6] y",
    )
    assert ops(plan) == ["Conv"]
    assert [p.tensor for p in plan.points if p.consumer not in plan.integer_nodes] == ["c"]


def test_links_are_dropped_between_float_neighbours():
    plan = plan_of(
        "t = Tanh (x) c = Conv (x, w) h = Tanh (c) a = Add (h, h) y = MaxPool <kernel_shape = [2, 2]> (a)",
        outputs="float[N, 8, 3, 3] y",
    )
    assert ops(plan) == ["Conv"]
    assert {node.op_type for node in plan.float_nodes.values()} == {"Tanh", "Add", "MaxPool"}


def test_every_float_node_has_a_reason():
    plan = plan_of("c = Conv (x, w) h = Tanh (c) y = Softmax (h)", outputs="float[N, 8, 6, 6] y")
    assert all(node.reason for node in plan.float_nodes.values())


@pytest.mark.parametrize("pattern", ["op:Conv", "*onv*"])
def test_exclude_by_operator_or_name(pattern):
    model = model_of(CLASSIFIER)
    for node in model.graph:
        node.name = f"my_{node.op_type}_{node.outputs[0].name}"
    plan = make_plan(model, get_target("onnxruntime"), QuantConfig(exclude=(pattern,)))
    assert "Conv" not in plan.integer_nodes.values()
    assert {n.reason for n in plan.float_nodes.values() if n.op_type == "Conv"} == {
        f"excluded by {pattern!r}"
    }


def test_include_leaves_the_rest_float():
    assert ops(plan_of(CLASSIFIER, include=("op:Gemm",))) == ["Gemm"]


def test_a_matmul_of_two_activations_stays_float_on_onnxruntime():
    body = "y = MatMul (x, z)"
    options = {"inputs": "float[N, 8, 8] x, float[N, 8, 8] z", "outputs": "float[N, 8, 8] y"}
    assert not plan_of(body, **options).points
    assert len(plan_of(body, target="tensorrt", **options).points) == 2


def test_shared_weights_have_one_group():
    body = "c = Conv <pads = [1,1,1,1]> (x, w) d = Conv <pads = [1,1,1,1]> (c, w2) e = Conv <pads = [1,1,1,1]> (d, w2) y = Tanh (e)"
    plan = plan_of(body, outputs="float[N, 8, 8, 8] y")
    assert [g.name for g in plan.groups.values() if g.constant] == ["w", "w2"]


def test_one_constant_read_as_weight_and_as_operand_has_two_groups():
    body = "t = MatMul (x, m) s = Conv <kernel_shape=[1, 1]> (x4, k) y = Tanh (t) z = Tanh (s)"
    plan = plan_of(
        body,
        inputs="float[N, 8] x, float[N, 8, 4, 4] x4",
        outputs="float[N, 8] y, float[N, 8, 4, 4] z",
        constants="float[8, 8, 1, 1] k = {" + ",".join(["0.5"] * 64) + "}",
    )
    assert {g.spec.axis for g in plan.groups.values() if g.constant} == {1, 0}


def test_clip_bounds_reach_the_group():
    limits = "float lo = {0}, float hi = {6}"
    body = "c = Conv (x, w) k = Clip (c, lo, hi) d = Conv (k, w2) y = Tanh (d)"
    plan = plan_of(body, outputs="float[N, 8, 4, 4] y", constants=limits)
    assert plan.groups["k"].bounds == (0, 6)
    assert "c" not in tensors(plan)


def test_a_clip_without_zero_is_not_fused():
    limits = "float lo = {1}, float hi = {6}"
    body = "c = Conv (x, w) k = Clip (c, lo, hi) d = Conv (k, w2) y = Tanh (d)"
    plan = plan_of(body, outputs="float[N, 8, 4, 4] y", constants=limits)
    assert "c" in tensors(plan)


def test_readers_bound_a_range():
    plan = plan_of("c = Conv (x, w) y = HardSwish (c)", outputs="float[N, 8, 6, 6] y")
    assert plan.groups["c"].bounds == (-3, math.inf)


def test_double_is_narrowed_and_quantized():
    plan = plan_of(
        "y = MatMul (x, h)",
        inputs="double[N, 2] x",
        outputs="double[N, 2] y",
        constants="double[2, 2] h = {1, 2, 3, 4}",
    )
    assert set(plan.integer_nodes.values()) == {"MatMul"}


def test_tensorrt_quantizes_inputs_only_and_leaves_the_bias_float():
    plan = plan_of(CLASSIFIER, target="tensorrt")
    assert not plan.biases
    assert all(spec.symmetric for spec in (p.spec for p in plan.points))
    assert {p.spec.dtype for p in plan.points} == {ir.DataType.INT8}


def test_tensorrt_quantizes_the_skip_branch_of_a_residual_only():
    plan = plan_of(CLASSIFIER, target="tensorrt")
    add = next(name for name, op in plan.integer_nodes.items() if op == "Add")
    assert [p.tensor for p in plan.points if p.consumer == add] == ["r"]


def test_tensorrt_leaves_an_add_without_convolution_float():
    plan = plan_of(
        "c = MatMul (x, m) y = Add (c, x)", target="tensorrt", inputs="float[N,8] x", outputs="float[N,8] y"
    )
    assert ops(plan) == ["MatMul"]


def test_grouped_conv_transpose_is_per_tensor():
    body = "y = ConvTranspose <group = 2> (x, t)"
    plan = plan_of(
        body,
        target="tensorrt",
        outputs="float[N, 2, 8, 8] y",
        constants="float[4, 1, 1, 1] t = {1, 2, 3, 4}",
    )
    assert next(p.spec.axis for p in plan.points if p.tensor == "t") is None


def test_types_that_the_target_does_not_take():
    with pytest.raises(TargetError, match="valid: int8"):
        plan_of(CLASSIFIER, target="tensorrt", activation="uint8")


def test_unknown_targets_list_the_valid_ones():
    with pytest.raises(TargetError, match=r"onnxruntime.*tensorrt"):
        get_target("abacus")


def test_a_tensor_captured_by_a_body_is_read_through_q_dq_there_too():
    body = """
        c = Conv (x, w)
        y = If (cond) <
            then_branch = g1 () => (float[N, 8, 6, 6] t) { t = Tanh (c) },
            else_branch = g2 () => (float[N, 8, 6, 6] e) { e = Neg (c) }
        >
    """
    plan = plan_of(body, inputs="float[N, 4, 8, 8] x, bool cond", outputs="float[N, 8, 6, 6] y")
    assert ops(plan) == ["Conv"]
    assert sum(p.tensor == "c" for p in plan.points) == 2
