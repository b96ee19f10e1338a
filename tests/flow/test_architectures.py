"""The blocks that networks are made of: what becomes integers, what stays float, and how close it is."""

import numpy as np
import pytest
from encoders import ACTIVATIONS, encoder
from flow import check, quantize, quantize_for
from graphs import parse

TARGETS = ("onnxruntime", "tensorrt")


X = "float[N, 8, 8, 8] x"


PLAIN = "float[8, 8, 1, 1] w, float[8] b, float[8, 8, 1, 1] v"


SAME = "<pads = [1, 1, 1, 1]>"


def _tame(*shape: int) -> np.ndarray:
    """Weights that keep the size of the values, as in trained networks: what is concatenated is alike."""
    return np.random.default_rng(0).normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)


def net(nodes, weights="", inputs=X, outputs="float[A, B, C, D] y", opset=17, **given):
    declared = f"{PLAIN}, {weights}" if weights else PLAIN
    return parse(f"g ({inputs}) => ({outputs}) <{declared}> {{ {nodes} }}", opset=opset, **given)


STEM = "c = Conv (x, w, b) r = Relu (c)"


HEAD = "z = Conv (t, v) y = Neg (z)"


HALVES = "float[4, 4, 1, 1] u, int64[1] start, int64[1] half, int64[1] end, int64[1] axis"


UNET = """c = Conv <pads = [1, 1, 1, 1]> (x, k, b) r = Relu (c)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    d = Conv <pads = [1, 1, 1, 1]> (p, k, b) s = Relu (d) {up} j = Concat <axis = 1> (r, u)
    e = Conv <pads = [1, 1, 1, 1]> (j, k2, b) t = Relu (e) z = Conv (t, v) y = Neg (z)"""


UNET_WEIGHTS = "float[8, 8, 3, 3] k, float[8, 16, 3, 3] k2"


BLOCKS = {
    "residual": (net(f"{STEM} d = Conv (r, v) a = Add (d, r) t = Relu (a) {HEAD}"), set()),
    "downsampling-residual": (
        net(
            f"""{STEM} d = Conv <strides = [2, 2]> (r, v, b) s = Conv <strides = [2, 2]> (r, u) a = Add (d, s)
            t = Relu (a) {HEAD}""",
            "float[8, 8, 1, 1] u",
        ),
        set(),
    ),
    "pre-activation-residual": (
        net(
            """c = Conv (x, w, b) n = BatchNormalization (c, s, b, b, variance) r = Relu (n)
            d = Conv (r, w, b) n2 = BatchNormalization (d, s, b, b, variance) r2 = Relu (n2)
            e = Conv (r2, w, b) a = Add (e, c) n3 = BatchNormalization (a, s, b, b, variance) t = Relu (n3)
            z = Conv (t, v) y = Neg (z)""",
            "float[8] s, float[8] variance",
            variance=1,
        ),
        set(),  # the first BatchNormalization reads what branches off: it is a convolution of its own
    ),
    "squeeze-excite": (
        net(
            f"""{STEM} g = GlobalAveragePool (r) h = Conv (g, w, b) i = Relu (h) e = Conv (i, v, b)
            s = Sigmoid (e) t = Mul (r, s) {HEAD}"""
        ),
        set(),
    ),
    "squeeze-excite-hard": (
        net(
            f"""{STEM} g = GlobalAveragePool (r) h = Conv (g, w, b) i = Relu (h) e = Conv (i, v, b)
            s = HardSigmoid (e) t = Mul (r, s) {HEAD}"""
        ),
        set(),
    ),
    "squeeze-excite-dense": (
        net(
            f"""{STEM} g = ReduceMean <axes = [2, 3], keepdims = 0> (r) h = Gemm (g, m, b) i = Relu (h)
            e = Gemm (i, m, b) s = Sigmoid (e) o = Unsqueeze (s, spatial) t = Mul (r, o) {HEAD}""",
            "float[8, 8] m, int64[2] spatial",
            spatial=[2, 3],
        ),
        {"Sigmoid"},
    ),
    "spatial-attention": (
        net(
            f"""{STEM} m = ReduceMax <axes = [1]> (r) a = ReduceMean <axes = [1]> (r)
            j = Concat <axis = 1> (m, a) q = Conv {SAME} (j, k) s = Sigmoid (q) t = Mul (r, s) {HEAD}""",
            "float[1, 2, 3, 3] k",
        ),
        {"ReduceMean"},
    ),
    "channel-attention": (
        net(
            f"""{STEM} g = GlobalAveragePool (r) f = Squeeze (g, last) i = Transpose <perm = [0, 2, 1]> (f)
            q = Conv <pads = [1, 1]> (i, k) j = Transpose <perm = [0, 2, 1]> (q) s = Sigmoid (j)
            e = Unsqueeze (s, last) t = Mul (r, e) {HEAD}""",
            "float[1, 1, 3] k, int64[1] last",
            last=[-1],
        ),
        set(),
    ),
    "silu": (net(f"c = Conv (x, w, b) s = Sigmoid (c) t = Mul (c, s) {HEAD}"), set()),
    "inverted-residual": (
        net(
            f"""{STEM} d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, k, b) e = Clip (d, zero, six)
            p = Conv (e, v, b) t = Add (p, r) {HEAD}""",
            "float[8, 1, 3, 3] k, float zero, float six",
            zero=0,
            six=6,
        ),
        set(),
    ),
    "hard-swish-around-depthwise": (
        net(
            f"""c = Conv (x, w, b) h = HardSwish (c) d = Conv <group = 8, pads = [1, 1, 1, 1]> (h, k, b)
            t = HardSwish (d) {HEAD}""",
            "float[8, 1, 3, 3] k",
        ),
        set(),
    ),
    "inception": (
        net(
            f"""{STEM} p = Conv (r, w, b) pr = Relu (p) q = Conv {SAME} (r, k, b) qr = Relu (q)
            m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r) j = Concat <axis = 1> (pr, qr, m)
            z = Conv (j, o) y = Neg (z)""",
            "float[8, 8, 3, 3] k, float[8, 24, 1, 1] o",
        ),
        set(),
    ),
    "dense-block": (
        net(
            f"""{STEM} p = Conv {SAME} (r, k) j = Concat <axis = 1> (r, p) q = Conv {SAME} (j, k2)
            l = Concat <axis = 1> (j, q) z = Conv (l, o) y = Neg (z)""",
            "float[8, 8, 3, 3] k, float[8, 16, 3, 3] k2, float[4, 24, 1, 1] o",
            k=_tame(8, 8, 3, 3),
            k2=_tame(8, 16, 3, 3),
        ),
        set(),
    ),
    "concat-of-clipped-and-unclipped": (
        net(
            "p = Conv (x, w, b) q = Conv (x, v, b) s = Relu (q) j = Concat <axis = 1> (p, s) z = Conv (j, o) y = Neg (z)",
            "float[4, 16, 1, 1] o",
        ),
        set(),
    ),
    "concat-of-two-clips": (
        net(
            """p = Conv (x, w, b) a = Clip (p, zero, six) q = Conv (x, v, b) s = Relu (q)
            j = Concat <axis = 1> (a, s) z = Conv (j, o) y = Neg (z)""",
            "float[4, 16, 1, 1] o, float zero, float six",
            zero=0,
            six=6,
        ),
        set(),
    ),
    "channel-shuffle": (
        net(
            f"""{STEM} a = Reshape (r, five) p = Transpose <perm = [0, 2, 1, 3, 4]> (a) f = Reshape (p, four)
            h, l = Split <axis = 1> (f) k = Conv (h, u) t = Concat <axis = 1> (k, l) {HEAD}""",
            "float[4, 4, 1, 1] u, int64[5] five, int64[4] four",
            five=[-1, 2, 4, 8, 8],
            four=[-1, 8, 8, 8],
        ),
        set(),
    ),
    "sliced-halves": (
        net(
            f"""{STEM} h = Slice (r, start, half, axis) l = Slice (r, half, end, axis) k = Conv (h, u)
            t = Concat <axis = 1> (k, l) {HEAD}""",
            HALVES,
            start=[0],
            half=[4],
            end=[8],
            axis=[1],
        ),
        set(),
    ),
    "u-net-transposed": (
        net(
            UNET.format(up="u = ConvTranspose <strides = [2, 2]> (s, n, b)"),
            f"{UNET_WEIGHTS}, float[8, 8, 2, 2] n",
        ),
        {"ConvTranspose"},
    ),
    "u-net-nearest": (
        net(
            UNET.format(up='u = Resize <mode = "nearest"> (s, , twice)'),
            f"{UNET_WEIGHTS}, float[4] twice",
            twice=[1, 1, 2, 2],
        ),
        set(),
    ),
    "u-net-linear": (
        net(
            UNET.format(up='u = Resize <mode = "linear"> (s, , twice)'),
            f"{UNET_WEIGHTS}, float[4] twice",
            twice=[1, 1, 2, 2],
        ),
        {"Resize"},
    ),
    "spatial-pyramid": (
        net(
            f"""{STEM} p = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (r)
            q = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (p) j = Concat <axis = 1> (r, p, q)
            z = Conv (j, o) y = Neg (z)""",
            "float[4, 24, 1, 1] o",
        ),
        set(),
    ),
    "two-headed-detector": (
        net(
            f"""{STEM} p = Conv (r, w) pt = Transpose <perm = [0, 2, 3, 1]> (p) p1 = Reshape (pt, boxes)
            q = Conv (r, v) qt = Transpose <perm = [0, 2, 3, 1]> (q) q1 = Reshape (qt, classes)
            d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            s = Conv (d, w) st = Transpose <perm = [0, 2, 3, 1]> (s) s1 = Reshape (st, boxes)
            k = Conv (d, v) kt = Transpose <perm = [0, 2, 3, 1]> (k) k1 = Reshape (kt, classes)
            y = Concat <axis = 1> (p1, s1) j = Concat <axis = 1> (q1, k1) scores = Softmax <axis = -1> (j)""",
            "int64[3] boxes, int64[3] classes",
            outputs="float[A, B, C] y, float[A, B, C] scores",
            boxes=[0, -1, 4],
            classes=[0, -1, 2],
        ),
        {"Transpose", "Reshape", "Concat", "Softmax"},
    ),
    "one-shot-detector": (
        net(
            """c = Conv (x, w, b) g = Sigmoid (c) s = Mul (c, g) o = Conv (s, h) r = Reshape (o, five)
            p = Transpose <perm = [0, 1, 3, 4, 2]> (r) f = Sigmoid (p) xy, wh, cls = Split <axis = 4> (f, parts)
            xy1 = Add (xy, grid) xy2 = Mul (xy1, stride) wh2 = Mul (wh, wh)
            j = Concat <axis = 4> (xy2, wh2, cls) y = Reshape (j, flat)""",
            "float[14, 8, 1, 1] h, int64[5] five, int64[3] flat, int64[3] parts, float[1, 2, 8, 8, 2] grid, float stride",
            outputs="float[A, B, C] y",
            five=[-1, 2, 7, 8, 8],
            flat=[-1, 128, 7],
            parts=[2, 2, 3],
            stride=8,
        ),
        {"Reshape", "Transpose", "Sigmoid", "Split", "Add", "Mul", "Concat"},
    ),
    "channels-last": (
        net(
            """i = Transpose <perm = [0, 3, 1, 2]> (x) c = Conv (i, w, b) o = Transpose <perm = [0, 2, 3, 1]> (c)
            r = Relu (o) j = Transpose <perm = [0, 3, 1, 2]> (r) d = Conv (j, v, b)
            p = Transpose <perm = [0, 2, 3, 1]> (d) y = Sigmoid (p)"""
        ),
        {"Transpose", "Relu", "Sigmoid"},
    ),
    "modern-convnet": (
        net(
            """c = Conv (x, w, b) d = Conv <group = 8, pads = [1, 1, 1, 1]> (c, k, b)
            i = Transpose <perm = [0, 2, 3, 1]> (d) l = LayerNormalization (i, b, b) h = MatMul (l, m)
            r = Relu (h) e = MatMul (r, m2) s = Mul (e, b) o = Transpose <perm = [0, 3, 1, 2]> (s)
            a = Add (c, o) f = Conv <group = 8, pads = [1, 1, 1, 1]> (a, k, b) y = Add (a, f)""",
            "float[8, 1, 3, 3] k, float[8, 16] m, float[16, 8] m2",
        ),
        # The residual stream is float, so depthwise convolutions stay so too.
        {"Conv", "Transpose", "LayerNormalization", "Add"},
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name):
    model, floats = BLOCKS[name]
    fast, dense = quantize_for(TARGETS, model)
    check(fast)
    check(dense)
    assert fast.floats - {"Neg"} == floats
    assert not {"Conv", "ConvTranspose", "Gemm", "MatMul"} & dense.floats


@pytest.mark.parametrize("shape", ["2, 6, 8", "N, S, 8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_transformer_encoder(activation, shape):
    """All six products with weights are integers; attention itself on TensorRT only."""
    fast, dense = quantize_for(TARGETS, encoder(activation, shape))
    check(fast)
    check(dense)
    assert (fast.planned("MatMul"), dense.planned("MatMul")) == (6, 8)
    assert {n.reason for n in fast.plan.float_nodes.values() if n.op_type == "MatMul"} == {
        "its second operand is computed at run time"
    }


def test_known_shapes_make_biases_int32():
    """ONNX Runtime then makes a Gemm of MatMul and Add, which must find integers everywhere."""
    known, unknown = (quantize(encoder("relu", shape)).plan for shape in ("2, 6, 8", "N, S, 8"))
    assert {bias.consumer for bias in known.biases} == {
        f"Add_{name}" for name in ("q1", "k1", "v1", "o", "h1", "d")
    }
    assert not unknown.biases
    assert not known.float_nodes.keys() & {bias.consumer for bias in known.biases}


# --- parameters that branches share -----------------------------------------------------------------


def concat_groups(nodes, weights):
    plan = quantize(net(nodes, weights)).plan
    return plan, {tensor: group.name for group in plan.groups.values() for tensor in group.tensors}


def test_branches_that_only_a_concat_reads_take_its_parameters():
    plan, group = concat_groups(
        f"""{STEM} p = Conv (r, w, b) pr = Relu (p) q = Conv (r, v, b) qr = Relu (q)
        j = Concat <axis = 1> (pr, qr, r) z = Conv (j, o) y = Neg (z)""",
        "float[4, 24, 1, 1] o",
    )
    assert group["pr"] == group["qr"] == group["j"] == "j"
    assert group["r"] == "r"  # two convolutions read it too, in its own finer steps
    assert plan.groups["j"].observed_tensors == ("j",)
    assert plan.groups["j"].bounds == (0, np.inf)


def test_a_rectified_branch_beside_a_negative_one_keeps_its_own():
    """With the other's zero point its Relu would not fuse."""
    _, group = concat_groups(
        "p = Conv (x, w, b) q = Conv (x, v, b) s = Relu (q) j = Concat <axis = 1> (p, s) z = Conv (j, o) y = Neg (z)",
        "float[4, 16, 1, 1] o",
    )
    assert group["p"] == "j"
    assert group["s"] == "s"


def test_a_pooled_branch_follows_only_with_its_source():
    _, group = concat_groups(
        f"""{STEM} m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r) p = Conv (r, w, b) s = Relu (p)
        q = Conv (s, v) u = Relu (q) n = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (u)
        j = Concat <axis = 1> (m, n) z = Conv (j, o) y = Neg (z)""",
        "float[4, 16, 1, 1] o",
    )
    assert group["m"] == group["r"] == "r"
    assert group["n"] == group["u"] == "j"
