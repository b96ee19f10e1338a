"""Where Q/DQ stand, edge by edge: the blocks that networks are made of, for each way of placing them."""

import numpy as np
import onnx_ir as ir
import pytest
from flow import float_kernels, quantize
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.core.plan import GRAPH_OUTPUT
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

WEIGHTS = (
    "float[8,8,1,1] w, float[8,8,1,1] v, float[8,8,1,1] u, float[8] b, float[8,16,1,1] o, float[8,8] m, "
    "float[8,8] m2, float[8,8,2,2] n, float zero, float six, float half, float[4] twice, int64[2] flat, "
    "int64[3] rows, int64[4] heads, int64[3] joined"
)
GIVEN = {
    "zero": 0,
    "six": 6,
    "half": 0.5,
    "twice": [1, 1, 2, 2],
    "flat": [0, -1],
    "rows": [0, 8, -1],
    "heads": [0, 0, 2, 4],
    "joined": [0, 0, 8],
}


def model_of(nodes, inputs="float[2,8,8,8] x", outputs="float[A,B,C,D] y"):
    """A model of those of the weights above that it names."""
    used = [weight for weight in WEIGHTS.split(", ") if f" {weight.split()[1]}" in nodes.replace(",", " ,")]
    given = {name: value for name, value in GIVEN.items() if any(w.split()[1] == name for w in used)}
    declared = f"<{', '.join(used)}>" if used else ""
    return parse(f"g ({inputs}) => ({outputs}) {declared} {{ {nodes} }}", opset=20, ir_version=9, **given)


def edges_of(plan):
    """``tensor>reader``, a reader named after what it computes; constants left out."""
    constant = {group.name for group in plan.groups.values() if group.constant}
    return {
        f"{point.tensor}>{point.consumer.rpartition('_')[2] if point.consumer != GRAPH_OUTPUT else ''}"
        for point in plan.points
        if point.group not in constant
    }


def plan_for(target, model):
    return make_plan(simplify(model), get_target(target), QuantConfig(target=target))


IMAGE = ("float[2,8,8,8] x", "float[A,B,C,D] y")
WORDS = ("float[2,6,8] x", "float[A,B,C] y")
BOXES = ("float[2,8,8,8] x", "float[A,B,C] y")

BLOCKS = {
    "residual": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) d = Conv (r, v, b) a = Add (d, r) t = Relu (a)
        e = Conv (t, u) y = Neg (e)""",
        {
            "onnxruntime": "d>a e>y r>a r>d t>e x>c",
            "tensorrt": "r>a r>d t>e x>c",
            "qnn": "d>a e>y r>a r>d t>e x>c y>",
            "academic-w4a8": "r>d t>e x>c",
        },
    ),
    "residual-of-two-convolutions": (
        IMAGE,
        "c = Conv (x, w, b) d = Conv (x, v) a = Add (c, d) t = Relu (a) e = Conv (t, u) y = Neg (e)",
        {
            "onnxruntime": "c>a d>a e>y t>e x>c x>d",
            "tensorrt": "c>a t>e x>c x>d",
            "qnn": "c>a d>a e>y t>e x>c x>d y>",
            "academic-w4a8": "t>e x>c x>d",
        },
    ),
    "clip": (
        IMAGE,
        "c = Conv (x, w, b) r = Clip (c, zero, six) d = Conv (r, v) y = Neg (d)",
        {
            "onnxruntime": "d>y r>d x>c",
            "tensorrt": "r>d x>c",
            "qnn": "d>y r>d x>c y>",
            "academic-w4a8": "r>d x>c",
        },
    ),
    "leaky-relu": (
        IMAGE,
        """c = Conv (x, w, b) r = LeakyRelu <alpha = 0.1> (c)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) d = Conv (p, v) y = Neg (d)""",
        {
            "onnxruntime": "c>r d>y p>d r>p x>c",
            "tensorrt": "p>d x>c",
            "qnn": "c>r d>y p>d r>p x>c y>",
            "academic-w4a8": "p>d x>c",
        },
    ),
    "silu": (
        IMAGE,
        "c = Conv (x, w, b) s = Sigmoid (c) t = Mul (c, s) d = Conv (t, v) y = Neg (d)",
        {
            "onnxruntime": "c>s c>t d>y s>t t>d x>c",
            "tensorrt": "t>d x>c",
            "qnn": "c>s c>t d>y s>t t>d x>c y>",
            "academic-w4a8": "t>d x>c",
        },
    ),
    "hard-swish": (
        IMAGE,
        "c = Conv (x, w, b) t = HardSwish (c) d = Conv (t, v) y = Neg (d)",
        {
            "onnxruntime": "c>t d>y t>d x>c",
            "tensorrt": "t>d x>c",
            "qnn": "c>t d>y t>d x>c y>",
            "academic-w4a8": "t>d x>c",
        },
    ),
    "squeeze-excite": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) g = GlobalAveragePool (r) h = Conv (g, v, b) i = Relu (h)
        e = Conv (i, u) s = Sigmoid (e) t = Mul (r, s) d = Conv (t, w) y = Neg (d)""",
        {
            "onnxruntime": "d>y e>s g>h i>e r>g r>t s>t t>d x>c",
            "tensorrt": "g>h i>e t>d x>c",
            "qnn": "d>y e>s g>h i>e r>g r>t s>t t>d x>c y>",
            "academic-w4a8": "g>h i>e t>d x>c",
        },
    ),
    "concat": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) d = Conv (x, v) q = Relu (d) j = Concat <axis = 1> (r, q)
        e = Conv (j, o) y = Neg (e)""",
        {
            "onnxruntime": "e>y j>e q>j r>j x>c x>d",
            "tensorrt": "j>e x>c x>d",
            "qnn": "e>y j>e q>j r>j x>c x>d y>",
            "academic-w4a8": "j>e x>c x>d",
        },
    ),
    "pools": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) p = MaxPool <kernel_shape = [2, 2]> (r)
        q = AveragePool <kernel_shape = [2, 2]> (p) d = Conv (q, v) y = Neg (d)""",
        {
            "onnxruntime": "d>y p>q q>d r>p x>c",
            "tensorrt": "q>d x>c",
            "qnn": "d>y p>q q>d r>p x>c y>",
            "academic-w4a8": "q>d x>c",
        },
    ),
    "classifier": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) g = GlobalAveragePool (r) f = Flatten (g)
        y = Gemm <transB = 1> (f, m, b)""",
        {
            "onnxruntime": "f>y g>f r>g x>c",
            "tensorrt": "f>y x>c",
            "qnn": "f>y g>f r>g x>c y>",
            "academic-w4a8": "f>y x>c",
        },
    ),
    "transposed": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) t = ConvTranspose <strides = [2, 2]> (r, n, b)
        d = Conv (t, v) y = Neg (d)""",
        {
            "onnxruntime": "d>y r>t t>d x>c",
            "tensorrt": "r>t t>d x>c",
            "qnn": "d>y r>t t>d x>c y>",
            "academic-w4a8": "r>t t>d x>c",
        },
    ),
    "resize-nearest": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) t = Resize <mode = "nearest"> (r, , twice) d = Conv (t, v)
        y = Neg (d)""",
        {
            "onnxruntime": "d>y r>t t>d x>c",
            "tensorrt": "t>d x>c",
            "qnn": "d>y r>t t>d x>c y>",
            "academic-w4a8": "t>d x>c",
        },
    ),
    "resize-linear": (
        IMAGE,
        """c = Conv (x, w, b) r = Relu (c) t = Resize <mode = "linear"> (r, , twice) d = Conv (t, v)
        y = Neg (d)""",
        {
            "onnxruntime": "d>y r>t t>d x>c",
            "tensorrt": "t>d x>c",
            "qnn": "d>y r>t t>d x>c y>",
            "academic-w4a8": "t>d x>c",
        },
    ),
    "linear": (
        WORDS,
        "c = MatMul (x, m) l = Add (c, b) r = Relu (l) d = MatMul (r, m2) y = Add (d, b)",
        {
            "onnxruntime": "r>d x>c",
            "tensorrt": "r>d x>c",
            "qnn": "c>l d>y r>d x>c y>",
            "academic-w4a8": "r>d x>c",
        },
    ),
    "gelu": (
        WORDS,
        "c = MatMul (x, m) l = Add (c, b) t = Gelu (l) y = MatMul (t, m2)",
        {
            "onnxruntime": "t>y x>c",
            "tensorrt": "t>y x>c",
            "qnn": "c>l l>t t>y x>c y>",
            "academic-w4a8": "t>y x>c",
        },
    ),
    "normalization": (
        WORDS,
        "c = MatMul (x, m) a = Add (x, c) t = LayerNormalization (a, b, b) y = MatMul (t, m2)",
        {
            "onnxruntime": "t>y x>c",
            "tensorrt": "t>y x>c",
            "qnn": "a>t c>a t>y x>a x>c y>",
            "academic-w4a8": "t>y x>c",
        },
    ),
    "attention": (
        WORDS,
        """q0 = Reshape (x, heads) q = Transpose <perm = [0, 2, 1, 3]> (q0)
        k = Transpose <perm = [0, 2, 3, 1]> (q0) s = MatMul (q, k) h = Mul (s, half) p = Softmax (h)
        v0 = MatMul (p, q) v1 = Transpose <perm = [0, 2, 1, 3]> (v0) v2 = Reshape (v1, joined)
        y = MatMul (v2, m)""",
        {
            "onnxruntime": "v0>v1 v1>v2 v2>y",
            "tensorrt": "k>s p>v0 q>s q>v0 v2>y",
            "qnn": "h>p k>s p>v0 q0>k q0>q q>s q>v0 s>h v0>v1 v1>v2 v2>y x>q0 y>",
            "academic-w4a8": "v2>y",
        },
    ),
    "boxes-and-scores": (
        BOXES,
        """c = Conv (x, w) r = Relu (c) d = Conv (r, v) bx = Reshape (d, rows) e = Conv (r, u)
        s0 = Reshape (e, rows) s = Sigmoid (s0) j = Concat <axis = 1> (bx, s)
        y = Transpose <perm = [0, 2, 1]> (j)""",
        {
            "onnxruntime": "d>bx e>s0 r>d r>e x>c",
            "tensorrt": "r>d r>e x>c",
            "qnn": "bx>j d>bx e>s0 r>d r>e s0>s s>j x>c",
            "academic-w4a8": "r>d r>e x>c",
        },
    ),
}
"""What goes in and out, the nodes, and the quantized edges for each way of placing them."""

ALIKE = {
    "onnxruntime": ("onnxruntime-avx2", "onnxruntime-arm"),
    "tensorrt": ("tensorrt8", "openvino"),
    "qnn": ("snpe", "ppl-w8a16"),
    "academic-w4a8": ("academic-w4a4", "academic-w2a4"),
}
"""Targets that place Q/DQ in the same way."""

PLACES = [
    (block, target, way)
    for block, (_, _, expected) in BLOCKS.items()
    for way in expected
    for target in (way, *ALIKE[way])
]


@pytest.mark.parametrize(("block", "target", "way"), PLACES)
def test_edges(block, target, way):
    boundary, nodes, expected = BLOCKS[block]
    assert edges_of(plan_for(target, model_of(nodes, *boundary))) == set(expected[way].split())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-avx2"])
def test_onnxruntime_fuses_all_that_was_planned(block, target):
    boundary, nodes, _ = BLOCKS[block]
    assert not list(float_kernels(quantize(model_of(nodes, *boundary), target)))


# --- Detector heads -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["onnxruntime", "qnn", "vitis-xint8", "snpe"])
def test_boxes_and_scores_keep_ranges_of_their_own(target):
    boundary, nodes, _ = BLOCKS["boxes-and-scores"]
    config = QuantConfig(target=target, quantize_outputs=True)
    plan = make_plan(simplify(model_of(nodes, *boundary)), get_target(target), config)
    assert "one range would not suit them all" in plan.float_nodes["Concat_j"].reason
    assert "only moves values" in plan.float_nodes["Transpose_y"].reason
    group = {tensor: group.name for group in plan.groups.values() for tensor in group.tensors}
    assert {"d", "e"} <= group.keys()
    assert group["d"] != group["e"]
    assert not {"j", "y"} & group.keys()


def test_a_concat_that_is_read_inside_is_quantized():
    _, nodes, _ = BLOCKS["concat"]
    assert "Concat_j" in plan_for("qnn", model_of(nodes)).integer_nodes


def test_a_concat_that_only_selection_reads_is_final():
    nodes = """c = Conv (x, w) bx = Reshape (c, rows) d = Conv (x, v) s = Reshape (d, rows)
        j = Concat <axis = 1> (bx, s) y, i = TopK (j, k)"""
    model = parse(
        f"g (float[2,8,8,8] x) => (float[A,B,C] y) <float[8,8,1,1] w, float[8,8,1,1] v, int64[3] rows, int64[1] k> {{ {nodes} }}",
        opset=20,
        ir_version=9,
        rows=[0, 8, -1],
        k=3,
    )
    assert "one range" in plan_for("qnn", model).float_nodes["Concat_j"].reason


def test_a_tensor_joined_with_itself_has_one_range_anyway():
    plan = plan_for("qnn", model_of("c = Conv (x, w) y = Concat <axis = 1> (c, c)"))
    assert "Concat_y" in plan.integer_nodes


# --- What sets targets apart ----------------------------------------------------------------------


def specs_of(plan):
    return {(point.tensor, point.consumer.rpartition("_")[2]): point.spec for point in plan.points}


def test_openvino_gives_transposed_convolutions_and_attention_signed_inputs():
    _, nodes, _ = BLOCKS["transposed"]
    specs = specs_of(plan_for("openvino", model_of(nodes)))
    assert (specs["r", "t"].dtype, specs["r", "t"].symmetric) == (ir.DataType.INT8, True)
    assert specs["t", "d"].dtype == ir.DataType.UINT8
    assert specs["n", "t"].axis == 1
    boundary, nodes, _ = BLOCKS["attention"]
    specs = specs_of(plan_for("openvino", model_of(nodes, *boundary)))
    assert {specs[edge].dtype for edge in (("q", "s"), ("k", "s"), ("p", "v0"))} == {ir.DataType.INT8}
    assert specs["v2", "y"].dtype == ir.DataType.UINT8


def test_a_tensor_read_in_two_formats_has_two_groups():
    nodes = "r = Relu (x) t = ConvTranspose <strides = [2, 2]> (r, n) d = Conv (r, v) y = Neg (t) z = Neg (d)"
    plan = plan_for("openvino", model_of(nodes, outputs="float[A,B,C,D] y, float[E,F,G,H] z"))
    assert sorted(g.spec.dtype.name for g in plan.groups.values() if "r" in g.tensors) == ["INT8", "UINT8"]


def test_openvino_has_no_kernel_for_grouped_transposed_convolutions():
    model = parse(
        "g (float[2,8,8,8] x) => (float[A,B,C,D] y) <float[8,4,2,2] k> { y = ConvTranspose <group = 2> (x, k) }"
    )
    plan = plan_for("openvino", model)
    assert "2 groups" in plan.float_nodes["ConvTranspose_y"].reason


def test_qnn_has_a_scale_a_channel_for_signed_convolutions_only():
    _, nodes, _ = BLOCKS["classifier"]
    model = model_of(nodes, *IMAGE)
    specs = specs_of(plan_for("qnn", model))
    assert (specs["w", "c"].axis, specs["m", "y"].axis) == (0, None)
    unsigned = make_plan(simplify(model), get_target("qnn"), QuantConfig(target="qnn", weight="uint8"))
    assert specs_of(unsigned)["w", "c"].axis is None


def test_normalization_on_qnn_stores_its_offset_as_a_bias():
    boundary, nodes, _ = BLOCKS["normalization"]
    plan = plan_for("qnn", model_of(nodes, *boundary))
    assert [(b.tensor, b.input_group, b.weight_group) for b in plan.biases] == [("b", "a", "b")]


def test_vitis_quantizes_biases_like_weights():
    _, nodes, _ = BLOCKS["residual"]
    plan = plan_for("vitis-xint8", model_of(nodes))
    bias = next(point for point in plan.points if point.tensor == "b")
    assert bias.spec.dtype == ir.DataType.INT8
    assert bias.spec.power_of_two
    assert not plan.biases


def test_the_ends_of_academic_networks_have_eight_bits():
    _, nodes, _ = BLOCKS["residual"]
    specs = specs_of(plan_for("academic-w4a4", model_of(nodes)))
    bits = {edge: spec.dtype.bitwidth - spec.reduce_bits for edge, spec in specs.items()}
    assert bits == {
        ("x", "c"): 8,
        ("w", "c"): 8,
        ("t", "e"): 8,
        ("u", "e"): 8,
        ("r", "d"): 4,
        ("v", "d"): 4,
    }


def test_a_lone_relu_is_quantized_where_everything_is():
    plan = plan_for("qnn", model_of("c = Conv (x, w) r = Relu (c) y = Add (c, r)"))
    assert {"Relu_r"} < plan.integer_nodes.keys(), "it cannot fuse: what it reads is read elsewhere too"
    fused = plan_for("qnn", model_of("c = Conv (x, w) r = Relu (c) y = Neg (r)"))
    assert "Relu_r" not in fused.integer_nodes
    assert "Relu_r" not in fused.float_nodes


def test_constants_that_are_only_moved_stay_float():
    model = parse(
        "g (int64[N] x) => (float[N,8] y) <float[9,8] t, float[8,8] m> { e = Gather (t, x) y = MatMul (e, m) }"
    )
    plan = plan_for("qnn", model)
    assert plan.float_nodes["Gather_e"].reason == "all its inputs are constants"
    assert "MatMul_y" in plan.integer_nodes


def test_what_q_and_dq_move_across_is_not_called_float():
    _, nodes, _ = BLOCKS["pools"]
    plan = plan_for("tensorrt", model_of(nodes))
    assert dict(plan.passthrough_nodes) == {"MaxPool_p": "MaxPool"}
    assert "MaxPool_p" not in plan.float_nodes


# --- Masks ----------------------------------------------------------------------------------------

MASKED = """g (float[2,6,6] x, bool[2,6,6] keep) => (float[2,6,8] y)
    <float zero, float lowest, float[8,8] m, float[2,6,8] v> {{
    mask = Where (keep, zero, lowest) {nodes} p = Softmax (s) o = MatMul (p, v) y = MatMul (o, m) }}"""


@pytest.mark.parametrize("lowest", [-1e4, np.finfo(np.float32).min])
@pytest.mark.parametrize(
    "nodes", ["s = Add (x, mask)", "n = Unsqueeze (mask, a) t = Squeeze (n, a) s = Add (x, t)"]
)
def test_attention_masks_stay_float_until_the_softmax(nodes, lowest):
    moved = "a" in nodes.split()[-1] or "Squeeze" in nodes
    text = MASKED.format(nodes=nodes).replace(
        "float zero", "int64[1] a, float zero" if moved else "float zero"
    )
    given = {"zero": 0, "lowest": lowest} | ({"a": [0]} if moved else {})
    plan = plan_for("qnn", parse(text, **given))
    reasons = {name: node.reason for name, node in plan.float_nodes.items()}
    assert reasons.keys() >= {"Where_mask", "Add_s", "Softmax_p"}
    assert all("minus infinity" in reason for reason in reasons.values())
    assert {"MatMul_o", "MatMul_y"} <= plan.integer_nodes.keys()


def test_a_number_that_hides_nothing_is_quantized():
    model = parse("g (float[2,8] x) => (float[2,8] y) <float[8] o> { y = Add (x, o) }", o=[-100] * 8)
    assert "Add_y" in plan_for("qnn", model).integer_nodes
