"""The parts of a graph that no range suits: angles, masks, normalizations in primitives, heads of detectors."""

import re

import numpy as np
import pytest
from flow import assert_close, quantize, run
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

TARGETS = ["onnxruntime", "tensorrt", "openvino", "qnn", "vitis-xint8", "academic-w4a8"]


def model_of(nodes, inputs, outputs, constants, opset=17, **given):
    """A model of those of ``constants`` (declarations) that ``nodes`` names."""
    used = [text for text in constants if re.search(rf"\b{text.split()[-1]}\b", nodes)]
    declared = f"<{', '.join(used)}>" if used else ""
    names = {text.split()[-1] for text in used}
    return parse(
        f"g ({inputs}) => ({outputs}) {declared} {{ {nodes} }}",
        opset=opset,
        ir_version=8 if opset < 19 else 10,
        **{name: value for name, value in given.items() if name in names},
    )


def plan_for(target, model):
    return make_plan(simplify(model), get_target(target), QuantConfig(target=target))


def integers(plan):
    """The outputs of the planned nodes, which are named after them, and the tensors in integers."""
    computed = {name.rpartition("_")[2] for name in plan.integer_nodes}
    return computed | {tensor for group in plan.groups.values() for tensor in group.tensors}


# --- Angles -----------------------------------------------------------------------------------------

ANGLE_CONSTANTS = (
    *("float[1, 8, 1] inv", "float[1, 8] row", "float[8] freqs", "float[500, 8] table", "float[3, 8] b"),
    *("float[8, 3, 1, 1] k", "float base", "float one", "int64[1] second", "int64[1] third", "int64[1] last"),
    *("float[8, 8] m", "float[8] alpha", "float[8] c", "int64 axis", "int64[3] size", "float[8, 8] m2"),
    "float[3, 8] m3",
)
ANGLE_VALUES = {
    "inv": 10.0 ** -np.arange(0, 4, 0.5).reshape(1, 8, 1),
    "row": 10.0 ** -np.arange(0, 4, 0.5).reshape(1, 8),
    "freqs": 10.0 ** -np.arange(0, 4, 0.5),
    "table": np.arange(500)[:, None] * 10.0 ** -np.arange(0, 4, 0.5),
    "base": 10000,
    "one": 1,
    "second": 1,
    "third": 2,
    "last": -1,
    "axis": 1,
    "size": [2, 8, 1],
}
IDS = "int64[2, 6] ids, float[2, 6, 8] x"
TURNED = "n = Cos (a) o = Sin (a) p = Mul (x, n) q = Add (p, o) y = MatMul (q, m)"

ANGLES = {
    "outer product of computed tensors": (
        IDS,
        f"""f = Cast <to = 1> (ids) g = Unsqueeze (f, second) e = Expand (inv, size) a0 = MatMul (e, g)
        a = Transpose <perm = [0, 2, 1]> (a0) {TURNED}""",
        "e a0 a",
    ),
    "outer product with a constant": (
        IDS,
        f"f = Cast <to = 1> (ids) g = Unsqueeze (f, third) a = MatMul (g, row) {TURNED}",
        "g a",
    ),
    "float positions": (
        "float[2, 6] pos, float[2, 6, 8] x",
        f"g = Unsqueeze (pos, third) a0 = Mul (g, freqs) a = Neg (a0) {TURNED}",
        "g a0 a",
    ),
    "positions counted from a mask": (
        IDS,
        f"""r = CumSum (ids, axis) f = Cast <to = 1> (r) s = Sub (f, one) g = Unsqueeze (s, third)
        a = Div (g, freqs) {TURNED}""",
        "s g a",
    ),
    "frequencies at run time": (
        "int64[2, 6] ids, float factor, float[2, 6, 8] x",
        f"""f = Cast <to = 1> (ids) g = Unsqueeze (f, third) h = Mul (base, factor) i = Pow (h, freqs)
        j = Reciprocal (i) a = Mul (g, j) {TURNED}""",
        "g h i j a",
    ),
    "summed by Einsum": (
        IDS,
        f'f = Cast <to = 1> (ids) a = Einsum <equation = "bs,h->bsh"> (f, freqs) {TURNED}',
        "a",
    ),
    "looked up": (IDS, f"a = Gather (table, ids) {TURNED}", "a"),
    "Fourier features": (
        "float[5, 3] z, float[5, 8] x",
        f"a = Gemm (z, b, c) {TURNED}",
        "z a",
    ),
    "Fourier features of pixels": (
        "float[1, 3, 8, 8] z, float[1, 8, 8, 8] x",
        f"a = Conv (z, k) {TURNED}",
        "z a",
    ),
    "joined and kept": (
        IDS,
        f"""f = Cast <to = 1> (ids) g = Unsqueeze (f, third) h = Mul (g, freqs) i = Concat <axis = 1> (h, h)
        a = Slice (i, second, third, second) {TURNED}""",
        "g h i a",
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ANGLES)
def test_angles_of_positions_are_never_integers(name, target):
    inputs, nodes, floats = ANGLES[name]
    axes = "A, B, C, D" if "Conv" in nodes else "A, B" if "Gemm" in nodes else "A, B, C"
    model = model_of(nodes, inputs, f"float[{axes}] y", ANGLE_CONSTANTS, **ANGLE_VALUES)
    plan = plan_for(target, model)
    assert not integers(plan) & set(floats.split())
    assert not {"Sin_o", "Cos_n"} & plan.integer_nodes.keys()
    assert "MatMul_y" in plan.integer_nodes


@pytest.mark.parametrize("target", TARGETS)
def test_layers_before_a_sine_are_quantized_but_not_their_factors(target):
    """As in Snake and in networks of sines: the first layer reads positions, the second features."""
    nodes = """f = Gemm (z, b, c) g = Sin (f) h = Gemm (g, m, c) i = Mul (h, alpha) j = Sin (i)
        k2 = Mul (j, j) l = Add (k2, h) y = Gemm (l, m2, c)"""
    model = model_of(nodes, "float[5, 3] z", "float[5, 8] y", ANGLE_CONSTANTS)
    plan = plan_for(target, model)
    assert {"Gemm_h", "Gemm_y"} <= plan.integer_nodes.keys()
    assert not {"f", "i", "j"} & {name.rpartition("_")[2] for name in plan.integer_nodes}
    assert "angles" in next(node for node in plan.float_nodes.values() if node.op_type == "Gemm").reason


def test_a_sine_of_features_is_quantized_where_everything_is():
    model = model_of(
        "h = Gemm (x, m, c) i = Gemm (h, m2, c) j = Sin (i) y = Gemm (j, m, c)",
        "float[5, 8] x",
        "float[5, 8] y",
        ANGLE_CONSTANTS,
    )
    assert {"Gemm_i", "Sin_j"} <= plan_for("qnn", model).integer_nodes.keys()


# --- Masks ------------------------------------------------------------------------------------------

MASK_CONSTANTS = (
    *("float zero", "float one", "float big", "float low", "float[2, 6, 6] mask", "float[8, 8] m"),
    *("int64[1] axes", "float[2, 6, 1] bias", "float scale"),
)
LOWEST = [-np.inf, np.finfo(np.float32).min, -65504, -1e4, -1000, -100, -30]

MASKS = {
    "added": "s = Add (r, mask) p = Softmax (s)",
    "chosen": "s = Where (keep, r, low) p = Softmax (s)",
    "chosen and added": "t = Where (keep, zero, low) s = Add (t, r) p = Softmax (s)",
    "made of zeros and ones": """t0 = Cast <to = 1> (keep) t1 = Sub (one, t0) t = Mul (t1, low) s = Add (r, t)
        p = Softmax (s)""",
    "subtracted": "t0 = Cast <to = 1> (drop) t = Mul (t0, big) s = Sub (r, t) p = Softmax (s)",
    "moved before": "t0 = Where (keep, zero, low) t = Unsqueeze (t0, axes) s0 = Squeeze (t, axes) s = Add (r, s0) p = Softmax (s)",
    "moved after": "t = Add (r, mask) s = Transpose <perm = [0, 2, 1]> (t) p = Softmax <axis = 1> (s)",
    "clamped after": "t = Add (r, mask) s = Max (t, low) p = Softmax (s)",
    "scaled after": "t = Add (r, mask) s = Div (t, scale) p = Softmax (s)",
    "two of them": "t = Add (r, mask) s = Where (keep, t, low) p = Softmax (s)",
    "in primitives": """s = Add (r, mask) u = ReduceMax <axes = [-1]> (s) v = Sub (s, u) w = Exp (v)
        z = ReduceSum (w, axes) p = Div (w, z)""",
    "given": "s = Add (r, given) p = Softmax (s)",
    "given and moved": "t0 = Unsqueeze (given, axes) t = Squeeze (t0, axes) s = Add (t, r) p = Softmax (s)",
    "given as zeros and ones": """t0 = Neg (given) t = Mul (t0, big) s = Sub (r, t) p = Softmax (s)""",
    "of a LogSoftmax": "s = Where (keep, r, low) p = LogSoftmax (s)",
}


def masked(nodes, lowest):
    hidden = np.zeros((2, 6, 6))
    hidden[:, :, 4:] = lowest
    return model_of(
        f"r = MatMul (q, k) {nodes} o = MatMul (p, x) y = MatMul (o, m)",
        "float[2, 6, 8] q, float[2, 8, 6] k, float[2, 6, 8] x, bool[2, 6, 6] keep, bool[2, 6, 6] drop, float[2, 6, 6] given",
        "float[2, 6, 8] y",
        MASK_CONSTANTS,
        zero=0,
        one=1,
        big=-lowest,
        low=lowest,
        mask=hidden,
        axes=-1,
        scale=2,
    )


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("name", MASKS)
def test_masks_stay_float_until_the_softmax(name, lowest):
    plan = plan_for("qnn", masked(MASKS[name], lowest))
    assert not integers(plan) & {"s", "t", "t0", "given", "s0", "u", "v", "w"}
    assert any("minus infinity" in node.reason for node in plan.float_nodes.values())
    assert {"MatMul_r", "MatMul_o", "MatMul_y"} <= plan.integer_nodes.keys()


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Add (r, mask) p = Softmax (s)",  # a learned bias by position
        "s = Mul (r, big) p = Softmax (s)",  # a temperature
        "s = Add (r, low) p = Relu (s)",  # no Softmax
    ],
)
def test_biases_and_scales_of_scores_are_quantized(nodes):
    lowest = -8 if "mask" in nodes else -60
    assert "s" in integers(plan_for("qnn", masked(nodes, lowest)))


# --- Normalizations in primitives -------------------------------------------------------------------

NORM_CONSTANTS = (
    *("float[8, 8, 1, 1] w", "float[8, 8, 1, 1] v", "float two", "float half", "float minus", "float eps"),
    *("float one", "float[8, 1, 1] gamma", "float[8, 1, 1] beta", "int64[1] channel", "int64[2] space"),
    *("int64[3] grouped", "int64[4] back", "int64[1] last", "int64[2] shape"),
)
NORM_VALUES = {
    "two": 2,
    "half": 0.5,
    "minus": -0.5,
    "eps": 1e-6,
    "one": 1,
    "channel": 1,
    "space": [2, 3],
    "last": -1,
    "grouped": [0, 2, -1],
    "back": [3, 8, 6, 6],
    "gamma": 1.5,
    "beta": 0.2,
}
CENTERED = "m = ReduceMean <axes = [1]> (c) d = Sub (c, m)"
AFFINE = "g = Mul (n, gamma) r = Add (g, beta)"

NORMS = {
    "layer norm": f"""{CENTERED} s = Pow (d, two) u = ReduceMean <axes = [1]> (s) e = Add (u, eps)
        q = Sqrt (e) n = Div (d, q) {AFFINE}""",
    "layer norm by multiplication": f"""{CENTERED} s = Mul (d, d) u = ReduceMean <axes = [1]> (s)
        e = Add (eps, u) q = Sqrt (e) i = Reciprocal (q) n = Mul (d, i) {AFFINE}""",
    "layer norm by a power": f"""{CENTERED} s = Mul (d, d) u = ReduceMean <axes = [1]> (s) e = Add (u, eps)
        i = Pow (e, minus) n = Mul (i, d) {AFFINE}""",
    "layer norm of the mean square": """m = ReduceMean <axes = [1]> (c) t = Mul (c, c)
        u = ReduceMean <axes = [1]> (t) s = Mul (m, m) e0 = Sub (u, s) e = Add (e0, eps) q = Sqrt (e)
        i0 = Reciprocal (q) i = Mul (i0, gamma) n = Mul (c, i) d = Mul (m, i) g = Sub (beta, d) r = Add (n, g)""",
    "RMS norm": """s = Pow (c, two) u = ReduceMean <axes = [1]> (s) e = Add (u, eps) q = Sqrt (e)
        i = Div (one, q) n = Mul (c, i) r = Mul (n, gamma)""",
    "RMS norm by division": """s = Mul (c, c) u = ReduceMean <axes = [1]> (s) e = Add (u, eps)
        q = Pow (e, half) n = Div (c, q) r = Mul (n, gamma)""",
    "instance norm": f"""m = ReduceMean <axes = [2, 3]> (c) d = Sub (c, m) s = Mul (d, d)
        u = ReduceMean <axes = [2, 3]> (s) e = Add (u, eps) q = Sqrt (e) n = Div (d, q) {AFFINE}""",
    "group norm": f"""h = Reshape (c, grouped) m = ReduceMean <axes = [2]> (h) d = Sub (h, m) s = Mul (d, d)
        u = ReduceMean <axes = [2]> (s) e = Add (u, eps) q = Sqrt (e) n0 = Div (d, q) n = Reshape (n0, back)
        {AFFINE}""",
    "L2 norm": """u = ReduceL2 <axes = [1]> (c) q = Max (u, eps) r = Div (c, q)""",
    "L2 norm of squares": """s = Mul (c, c) u = ReduceSum (s, channel) q0 = Sqrt (u) q = Clip (q0, eps)
        r = Div (c, q)""",
    "L2 norm, expanded": """u = ReduceL2 <axes = [1]> (c) q0 = Clip (u, eps) z = Shape (c) q = Expand (q0, z)
        r = Div (c, q)""",
    "response norm": """u = ReduceL2 <axes = [2, 3]> (c) m = ReduceMean <axes = [1]> (u) e = Add (m, eps)
        i = Div (u, e) n = Mul (c, i) g = Mul (n, gamma) r = Add (g, beta)""",
    "local response norm": """s = Mul (c, c) u = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s)
        e0 = Mul (u, half) e = Add (e0, one) q = Pow (e, half) r = Div (c, q)""",
    "softmax": """m = ReduceMax <axes = [1]> (c) d = Sub (c, m) s = Exp (d) u = ReduceSum (s, channel)
        r = Div (s, u)""",
}


def normalized(nodes, opset):
    if opset >= 18:
        nodes = re.sub(r"(Reduce\w+) <axes = \[1\]> \((\w+)\)", r"\1 (\2, channel)", nodes)
        nodes = re.sub(r"(Reduce\w+) <axes = \[2, 3\]> \((\w+)\)", r"\1 (\2, space)", nodes)
        nodes = re.sub(r"(Reduce\w+) <axes = \[2\]> \((\w+)\)", r"\1 (\2, last)", nodes)
    return model_of(
        f"c = Conv (x, w) {nodes} f = Conv (r, v) y = Neg (f)",
        "float[3, 8, 6, 6] x",
        "float[A, B, C, D] y",
        NORM_CONSTANTS,
        opset,
        **NORM_VALUES,
    )


def pictures():
    """Parts of these pictures are a hundred times as bright as others."""
    x = np.random.default_rng(5).standard_normal((3, 8, 6, 6)).astype(np.float32)
    return x * np.float32([0.03, 0.3, 3]).reshape(3, 1, 1, 1)


@pytest.mark.parametrize("target", ["onnxruntime", "qnn", "vitis-xint8"])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("name", NORMS)
def test_normalizations_in_primitives_stay_float(name, opset, target):
    flow = quantize(normalized(NORMS[name], opset), target, {"x": pictures()})
    inside = {"m", "d", "s", "u", "e0", "e", "q0", "q", "i0", "i", "n0", "n", "g", "t", "h"}
    assert not integers(flow.plan) & inside
    assert {"Conv_c", "Conv_f"} <= flow.plan.integer_nodes.keys()
    told = [node.reason for node in flow.plan.float_nodes.values() if node.op_type in ("Div", "Mul", "Sub")]
    assert told
    if target == "qnn":
        assert all("part of a normalization" in reason for reason in told)
    plain = run(flow.int8, flow.feeds, optimize=False)
    assert_close(flow, plain, run(flow.int8, flow.feeds), 30)


def test_the_norm_behind_an_embedding_stays_float():
    model = parse(
        """g (int64[N, 5] ids) => (float[N, 5, 16] y) <float[50, 8] table, float two, float eps, float[8] gamma,
        float[8, 16] w, int64[1] last> { x = Gather (table, ids) s = Pow (x, two) u = ReduceMean (s, last)
        e = Add (u, eps) q = Sqrt (e) i = Reciprocal (q) n = Mul (x, i) r = Mul (n, gamma) y = MatMul (r, w) }""",
        opset=18,
        two=2,
        eps=1e-6,
        last=-1,
    )
    plan = plan_for("qnn", model)
    assert not integers(plan) & set("sueqin")
    assert set(plan.integer_nodes.values()) == {"MatMul"}


def test_other_divisions_and_gates_are_quantized():
    nodes = """g = GlobalAveragePool (c) h = Conv (g, v) i = Sigmoid (h) n = Mul (c, i) e = Div (n, gamma)
        k = Abs (e) l = Add (k, one) r = Div (e, l)"""
    model = normalized(nodes, 13)
    assert {"n", "e", "r", "g"} <= integers(plan_for("qnn", model))


# --- Heads ------------------------------------------------------------------------------------------

HEAD_CONSTANTS = (
    *("float[8, 8, 1, 1] w", "float[4, 8, 1, 1] wb", "float[3, 8, 1, 1] ws", "int64[3] flatb"),
    *("int64[3] flats", "int64[2] parts", "int64[1] k", "float stride", "int64[1] zero", "int64[1] four"),
    *("int64[1] seven", "int64[1] one", "int64[1] last", "int64[3] wide", "int64[3] tiles", "int64 fourth"),
    *("int64[1] ten", "float[1, 3, 64] grid", "float score"),
)
HEAD_VALUES = {
    "flatb": [0, 4, -1],
    "flats": [0, 3, -1],
    "parts": [4, 3],
    "k": 5,
    "stride": 60,
    "zero": 0,
    "four": 4,
    "seven": 7,
    "one": 1,
    "last": -1,
    "wide": [0, 7, -1],
    "tiles": [1, 1, 4],
    "fourth": 4,
    "ten": 10,
    "score": 0.3,
}
STEM = """c = Conv (x, w) a = Relu (c) b0 = Conv (a, wb) b1 = Reshape (b0, flatb) b = Mul (b1, stride)
    s0 = Conv (a, ws) s1 = Reshape (s0, flats) s = Sigmoid (s1)"""

HEADS = {
    "split": """j = Concat <axis = 1> (b, s) t = Transpose <perm = [0, 2, 1]> (j)
        y, v = Split <axis = 2> (t, parts) z = ReduceMax <axes = [-1]> (v)""",
    "sliced": """j = Concat <axis = 1> (b, s) y = Slice (j, zero, four, one) v = Slice (j, four, seven, one)
        z = ReduceMax <axes = [1]> (v)""",
    "gathered": """j = Concat <axis = 1> (b, s) v = Gather <axis = 1> (j, fourth) z = Unsqueeze (v, one)
        y = Slice (j, zero, four, one)""",
    "split and selected": """j = Concat <axis = 1> (b, s) t = Transpose <perm = [0, 2, 1]> (j)
        p, v = Split <axis = 2> (t, parts) m = ReduceMax <axes = [-1], keepdims = 0> (v)
        z0, i = TopK (m, k) u = Unsqueeze (i, last) e = Tile (u, tiles) y = GatherElements <axis = 1> (p, e)
        z = Unsqueeze (z0, one)""",
    "of several scales": """j = Concat <axis = 1> (b, s) b2 = Neg (b) j2 = Concat <axis = 1> (b2, s)
        t = Concat <axis = 2> (j, j2) y, v0 = Split <axis = 1> (t, parts) z = ReduceMax <axes = [1]> (v0)""",
    "decoded after": """j = Concat <axis = 1> (b, s) p = Slice (j, zero, four, one) n = Exp (p)
        y = Mul (n, stride) v = Slice (j, four, seven, one) z = Max (v, score)""",
    "measured": """j = Concat <axis = 1> (b, s) h = Shape (j) o = Cast <to = 1> (h) z = Unsqueeze (o, zero)
        y, v = Split <axis = 1> (j, parts)""",
}


@pytest.mark.parametrize("target", ["onnxruntime", "qnn", "snpe"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_joined_and_separated_keep_their_ranges(name, target):
    outputs = "float[A, B] z" if name == "measured" else "float[A, B, C] z"
    model = model_of(
        f"{STEM} {HEADS[name]}",
        "float[1, 8, 8, 8] x",
        f"float[D, E, F] y, {outputs}",
        HEAD_CONSTANTS,
        13,
        **HEAD_VALUES,
    )
    plan = plan_for(target, model)
    assert "Concat_j" in plan.float_nodes
    group = {tensor: group.name for group in plan.groups.values() for tensor in group.tensors}
    if target != "onnxruntime":
        assert "one range would not suit them all" in plan.float_nodes["Concat_j"].reason
        assert group["b"] != group["s"]
    assert "j" not in group


def test_channels_that_are_joined_and_shuffled_are_quantized():
    """There are layers after the Split."""
    nodes = """c = Conv (x, w) a = Relu (c) b = Sigmoid (c) j = Concat <axis = 1> (a, b)
        p, q = Split <axis = 1> (j) f = Conv (p, wb) y = Reshape (f, flatb) z = Reshape (q, wide2)"""
    model = model_of(
        nodes,
        "float[1, 8, 8, 8] x",
        "float[D, E, F] y, float[A, B, C] z",
        (*HEAD_CONSTANTS, "int64[3] wide2"),
        13,
        **HEAD_VALUES,
        wide2=[0, 8, -1],
    )
    assert "Concat_j" in plan_for("qnn", model).integer_nodes
