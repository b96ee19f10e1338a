"""Which weights get a scale a block, and what becomes of those that cannot."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.core.plan import OPSET_OF_BLOCKS
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

DENSE = "float[64,32] w, float[32,8] v, float[32] b, float[64,64] big, float[8,64] t"


def plan_of(
    body, inputs="float[N,64] x", outputs="float[N,8] y", constants="", target="onnxruntime", **options
):
    declared = f"{DENSE}, {constants}" if constants else DENSE
    model = parse(f"g ({inputs}) => ({outputs}) <{declared}> {{ {body} }}", opset=20)
    config = QuantConfig(target=target, **{"weight": "int4", "block_size": 32, **options})
    return make_plan(simplify(model, OPSET_OF_BLOCKS), get_target(target), config)


def blocks(plan):
    """Tensor -> (axis, block size) of the weights that are cut."""
    return {
        point.tensor: (point.spec.axis, point.spec.block_size)
        for point in plan.points
        if point.spec.block_size is not None
    }


def test_activations_beside_blocks_stay_float():
    plan = plan_of("h = MatMul (x, w) g = Gelu (h) y = MatMul (g, v)")
    assert blocks(plan) == {"w": (0, 32), "v": (0, 32)}
    assert {point.tensor for point in plan.points} == {"w", "v"}
    assert plan.observed == ()
    assert not plan.biases
    assert sorted(plan.integer_nodes.values()) == ["MatMul", "MatMul"]


def test_blocks_lie_along_the_summed_axis():
    body = "y = Gemm <transB = 1> (x, t)"
    assert blocks(plan_of(body, target="tensorrt", block_size=64)) == {"t": (1, 64)}


def test_what_the_kernel_does_not_take_keeps_a_scale_a_channel_and_is_told(caplog):
    plan_of("y = MatMul (x, m)", constants="float[64,8] m")
    assert not caplog.text
    plan = plan_of("[last] y = Gemm <transB = 1> (x, t)")
    assert "onnxruntime has no kernel with weights in blocks for 1 MatMul or Gemm" in caplog.text
    assert "last" in caplog.text
    assert blocks(plan) == {}
    spec = next(point.spec for point in plan.points if point.tensor == "t")
    assert (spec.dtype, spec.axis) == (ir.DataType.INT4, 0)
    assert plan.observed == ("x",)


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (p, k) f = Flatten (c) y = MatMul (f, v)",
        "c = Conv (p, k) f = Flatten (c) n = Neg (f) h = MatMul (n, v) y = Add (h, h)",
    ],
    ids=["integers come in", "floats come in"],
)
def test_a_matrix_after_integers_is_not_cut(body):
    """Two convolutions, so that the last one gives integers to whoever reads it."""
    inputs, constants = "float[N,4,4,4] p", "float[8,4,3,3] k"
    plan = plan_of(body, inputs, constants=constants)
    assert blocks(plan) == ({} if "Neg" not in body else {"v": (0, 32)})
    assert {"Conv", "MatMul"} <= set(plan.integer_nodes.values())


def test_a_matrix_before_integers_is_not_cut():
    """Here ``t`` is not cut, so that its Gemm reads integers, and so on up to where floats come between."""
    body = "a = MatMul (x, big) g = Gelu (a) b1 = MatMul (g, big) r = Relu (b1) y = Gemm <transB = 1> (r, t)"
    plan = plan_of(body)
    assert {(p.consumer.split("_")[0], p.input_index) for p in plan.points if p.spec.block_size}
    assert [p.spec.block_size for p in plan.points if p.tensor == "big"] == [32, None]
    assert len({p.group for p in plan.points if p.tensor == "big"}) == 2


def test_targets_without_short_blocks_leave_such_matrices_float():
    plan = plan_of("h = MatMul (x, w) g = Gelu (h) y = MatMul (g, v)", target="tensorrt", block_size=64)
    assert blocks(plan) == {"w": (0, 64)}
    (reason,) = {node.reason for node in plan.float_nodes.values() if node.op_type == "MatMul"}
    assert reason == "int4 weights need blocks, and its weights cannot be cut into blocks of 64"


def test_a_convolution_that_cannot_have_the_type_stays_float_with_its_sum():
    body = "c = Conv <pads=[1,1,1,1]> (p, k) s = Add (c, p) f = Flatten (s) y = MatMul (f, m)"
    constants = "float[4,4,3,3] k, float[64,8] m"
    plan = plan_of(body, "float[N,4,4,4] p", constants=constants, target="tensorrt", block_size=64)
    assert blocks(plan) == {"m": (0, 64)}
    assert {point.tensor for point in plan.points} == {"m"}
    assert {"Conv", "Add"} <= {node.op_type for node in plan.float_nodes.values()}


def test_a_product_of_activations_in_integers_may_stand_after_blocks():
    plan = plan_of(
        "h = MatMul (x, w) i = Transpose <perm=[1,0]> (h) y = MatMul (i, h)",
        outputs="float[32,32] y",
        target="tensorrt",
        block_size=64,
    )
    assert blocks(plan) == {"w": (0, 64)}
    assert [p.spec.dtype for p in plan.points if p.tensor in "hi"] == [ir.DataType.INT8] * 2


def test_some_nodes_have_other_types_in_their_blocks():
    body = "h = MatMul (x, w) g = Gelu (h) y = MatMul (g, v)"
    plan = plan_of(body, override=("MatMul_h: weight=int8", "MatMul_y: weight=uint4"))
    assert blocks(plan) == {"w": (0, 32), "v": (0, 32)}
    assert {p.tensor: p.spec.dtype for p in plan.points} == {"w": ir.DataType.INT8, "v": ir.DataType.UINT4}


def test_a_type_that_is_not_for_blocks_is_not_cut(caplog):
    options = {"target": "tensorrt", "block_size": 64, "override": ("MatMul_y: weight=int8",)}
    plan = plan_of("y = MatMul (x, m)", constants="float[64,8] m", **options)
    assert blocks(plan) == {}
    specs = {point.tensor: (point.spec.dtype, point.spec.axis) for point in plan.points}
    assert specs == {"x": (ir.DataType.INT8, None), "m": (ir.DataType.INT8, 1)}
    assert not caplog.text


def test_stacks_of_matrices_are_not_cut():
    plan = plan_of("y = MatMul (x, s)", "float[2,N,64] x", "float[2,N,8] y", constants="float[2,64,8] s")
    assert blocks(plan) == {}
    assert [p.spec.dtype for p in plan.points if p.tensor == "s"] == [ir.DataType.INT4]


@pytest.mark.parametrize("axes", ["1", "1,1"])
def test_a_stack_of_one_matrix_is_cut_like_the_matrix(axes):
    out = "1," * (axes.count(",") + 1) + "N,8"
    plan = plan_of("y = MatMul (x, s)", outputs=f"float[{out}] y", constants=f"float[{axes},64,8] s")
    assert blocks(plan) == {"s": (0, 32)}


def test_excluded_nodes_are_left_alone():
    plan = plan_of("h = MatMul (x, w) g = Gelu (h) y = MatMul (g, v)", exclude=("*",))
    assert not plan.points
    assert np.all(
        [node.reason == "excluded by '*'" for node in plan.float_nodes.values() if node.op_type == "MatMul"]
    )
