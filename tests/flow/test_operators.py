"""Every form of the weighted operators, and of the operators between them, through the whole flow."""

import numpy as np
import onnx_ir as ir
import pytest
from flow import EXACT, assert_close, check, check_legal, optimized, quantize, quantize_and_check, run
from graphs import parse

from onnxq.targets import TARGETS as EVERY

TARGETS = ["onnxruntime", "tensorrt"]

# --- convolutions -----------------------------------------------------------------------------------


def convolution(weight, attributes="", inputs="float[N, 8, 8, 8] x", bias=True):
    """One convolution; nothing that its output leads to is the graph's output, which would stay float."""
    sizes = weight.split(",")
    out, dims = sizes[0], ", ".join("ABCDE"[: len(sizes)])
    declared = f"float[{weight}] w" + (f", float[{out}] b" if bias else "")
    attributes = f"<{attributes}>" if attributes else ""
    read = "x, w, b" if bias else "x, w"
    return f"g ({inputs}) => (float[{dims}] y) <{declared}> {{ c = Conv {attributes} ({read}) y = Neg (c) }}"


CONVOLUTIONS = {
    "1-d": convolution("8, 4, 3", "pads = [1, 1]", "float[N, 4, 16] x"),
    "3-d": convolution("4, 2, 3, 3, 3", "", "float[N, 2, 4, 5, 6] x"),
    "wide-groups": convolution("16, 16, 3, 3", "group = 2", "float[N, 32, 6, 6] x"),
    "dilated": convolution("8, 8, 3, 3", "dilations = [2, 2]"),
    "strided": convolution("8, 8, 1, 3", "strides = [2, 2]", bias=False),
    "same-upper": convolution("8, 8, 3, 3", 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same-lower": convolution("8, 8, 3, 3", 'auto_pad = "SAME_LOWER", strides = [2, 2]'),
    "valid": convolution("8, 8, 3, 3", 'auto_pad = "VALID"'),
    "padded-unevenly": convolution("8, 8, 3, 3", "pads = [2, 0, 1, 1]"),
    "one-by-one": convolution("8, 8, 1, 1"),
    "one-input-channel": convolution("2, 1, 3, 3", "", "float[N, 1, 8, 8] x"),
}

NARROW = {
    "depthwise": convolution("8, 1, 3, 3", "group = 8"),
    "depthwise-multiplier": convolution("16, 1, 3, 3", "group = 8", bias=False),
    "one-channel": convolution("1, 1, 3, 3", "", "float[N, 1, 8, 8] x"),
    "narrow-groups": convolution("6, 4, 3, 3", "group = 2"),
}
"""On ONNX Runtime their integer kernels are no faster."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, target):
    flow = quantize_and_check(parse(CONVOLUTIONS[name]), target, at_least=28)
    assert flow.floats == {"Neg"}


@pytest.mark.parametrize("name", NARROW)
def test_narrow_convolutions(name):
    assert quantize_and_check(parse(NARROW[name]), "tensorrt", at_least=28).floats == {"Neg"}
    assert not quantize(parse(NARROW[name])).plan.points


def test_a_depthwise_convolution_between_integers_is_one_of_them():
    flow = quantize_and_check(
        parse(
            """g (float[N, 4, 8, 8] x) => (float[A, B, C, D] y)
            <float[8, 4, 1, 1] w, float[8] b, float[8, 1, 3, 3] d, float[4, 8, 1, 1] p> {
                c = Conv (x, w, b) r = Relu (c) e = Conv <group = 8, pads = [1, 1, 1, 1]> (r, d, b)
                s = Relu (e) f = Conv (s, p) y = Neg (f)
            }"""
        ),
        "onnxruntime",
    )
    assert flow.planned("Conv") == 3


def test_a_convolution_of_one_channel_joins_only_integers_that_a_node_gives():
    flow = quantize_and_check(
        parse(
            """g (float[N, 1, 8, 8] x) => (float[A, B, C, D] y)
            <float[1, 1, 3, 3] d, float[8, 1, 3, 3] w, float[8, 1, 3, 3] v> {
                c = Conv (x, w) m = ReduceMean (c) e = Conv (x, d) f = Conv (e, v) p = Mul (f, m) y = Neg (p)
            }"""
        ),
        "onnxruntime",
    )
    assert flow.planned("Conv") == 2, "x is quantized for c, but e reads it in float"


TRANSPOSED = {
    "plain": ("8, 4, 2, 2", "strides = [2, 2]", 4),
    "grouped": ("8, 4, 2, 2", "strides = [2, 2], group = 2", 8),
    "depthwise": ("8, 1, 4, 4", "strides = [2, 2], group = 8, pads = [1, 1, 1, 1]", 8),
    "output-padding": ("8, 4, 3, 3", "strides = [2, 2], output_padding = [1, 1], pads = [1, 1, 1, 1]", 4),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name):
    """TensorRT takes them, ONNX Runtime does not: there they stand float between integers."""
    weight, attributes, channels = TRANSPOSED[name]
    model = parse(
        f"""g (float[N, 8, 6, 6] x) => (float[A, B, C, D] y)
        <float[8, 8, 1, 1] p, float[8] b, float[{weight}] w, float[{channels}] c, float[4, {channels}, 1, 1] q> {{
            a = Conv (x, p, b) r = Relu (a) t = ConvTranspose <{attributes}> (r, w, c) d = Conv (t, q) y = Neg (d)
        }}"""
    )
    dense = quantize_and_check(model, "tensorrt")
    assert dense.planned("ConvTranspose") == 1
    flow = quantize_and_check(model, "onnxruntime", at_least=26)
    assert flow.floats == {"ConvTranspose", "Neg"}
    assert weights_of(flow, "ConvTranspose") == {np.dtype(np.float32)}


# --- float neighbours -------------------------------------------------------------------------------

CHAIN = """g (float[N, 8, 6, 6] x) => (float[A, B, C, D] y)
    <float[8, 8, 1, 1] w, float[8] b, float[8, 8, 3, 3] v, float[8, 8, 1, 1] u> {
        c = Conv (x, w, b) r = Relu (c) mid = Conv <pads = [1, 1, 1, 1]> (r, v, b) k = Relu (mid)
        e = Conv (k, u, b) y = Neg (e)
    }"""


def weights_of(flow, op_type):
    """The types in which the fused model stores the weights of its float nodes of one type."""
    graph = optimized(flow.int8).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    stored |= {o: ir.DataType.INT8 for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    return {
        ir.DataType(stored[n.input[1]]).numpy()
        for n in graph.node
        if n.op_type in {op_type, f"Fused{op_type}"}
    }


def test_an_excluded_convolution_keeps_its_float_weights_in_the_runtime():
    """Between a per-tensor DQ and a Q the runtime would quantize them by itself."""
    flow = quantize(parse(CHAIN), exclude=("Conv_mid",))
    check(flow)
    assert flow.planned("Conv") == 2
    (point,) = (p for p in flow.plan.points if p.consumer == "Conv_mid")
    assert point.replicated_scale == (1, 8)
    assert weights_of(flow, "Conv") == {np.dtype(np.float32)}


def test_an_excluded_gemm_keeps_its_float_weights_in_the_runtime():
    text = """g (float[M, 8] x) => (float[M, 8] y) <float[8, 8] w, float[8] b> {
        a = Gemm (x, w, b) r = Relu (a) mid = Gemm <transB = 1> (r, w, b) s = Relu (mid) y = Gemm (s, w, b)
    }"""
    flow = quantize(parse(text), exclude=("Gemm_mid",))
    check(flow)
    assert weights_of(flow, "Gemm") == {np.dtype(np.float32)}


# --- products ---------------------------------------------------------------------------------------


def gemm(attributes="", x="M, 8", w="8, 5", c="5", y="M, 5"):
    declared = f"float[{w}] w" + (f", float[{c}] c" if c is not None else "")
    inputs = "x, w" if c is None else "x, w, c"
    attributes = f"<{attributes}>" if attributes else ""
    return f"g (float[{x}] x) => (float[{y}] y) <{declared}> {{ y = Gemm {attributes} ({inputs}) }}"


GEMMS = {
    "plain": gemm(),
    "no-bias": gemm(c=None),
    "row": gemm(c="1, 5"),
    "one": gemm(c="1"),
    "scalar": gemm(c=""),
    "one-column": gemm(w="8, 1", c="1", y="M, 1"),
    "transposed-weight": gemm("transB = 1", w="5, 8"),
    "transposed-data": gemm("transA = 1", x="8, M"),
    "both-transposed": gemm("transA = 1, transB = 1", x="8, M", w="5, 8"),
    "alpha": gemm("alpha = 0.5"),
    "alpha-beta": gemm("alpha = 0.5, beta = 2.0"),
    "no-beta": gemm("beta = 0.0"),
}

MATRIX_BIASES = {"matrix": gemm(x="3, 8", c="3, 5", y="3, 5"), "column": gemm(x="3, 8", c="3, 1", y="3, 5")}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", GEMMS)
def test_gemms(name, target):
    flow = quantize_and_check(parse(GEMMS[name]), target, at_least=35)
    assert not flow.floats


@pytest.mark.parametrize("name", MATRIX_BIASES)
def test_gemms_with_another_bias_for_each_row(name):
    quantize_and_check(parse(MATRIX_BIASES[name]), "tensorrt", at_least=35)
    assert (
        "its bias has shape"
        in next(iter(quantize(parse(MATRIX_BIASES[name])).plan.float_nodes.values())).reason
    )


MATMULS = {
    "matrix": "g (float[M, 8] x) => (float[M, 5] y) <float[8, 5] w> { y = MatMul (x, w) }",
    "batch": "g (float[N, M, 8] x) => (float[N, M, 5] y) <float[8, 5] w> { y = MatMul (x, w) }",
    "vector-data": "g (float[8] x) => (float[5] y) <float[8, 5] w> { y = MatMul (x, w) }",
    "vector-weight": "g (float[N, M, 8] x) => (float[N, M] y) <float[8] w> { y = MatMul (x, w) }",
    "stack-of-weights": "g (float[2, M, 8] x) => (float[2, M, 5] y) <float[2, 8, 5] w> { y = MatMul (x, w) }",
    "one-weight-in-a-stack": "g (float[N, 3, M, 8] x) => (float[N, 3, M, 5] y) <float[1, 3, 8, 5] w> "
    "{ y = MatMul (x, w) }",
    "bias": "g (float[M, 8] x) => (float[M, 5] y) <float[8, 5] w, float[5] b> { t = MatMul (x, w) y = Add (b, t) }",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MATMULS)
def test_products_with_constants(name, target):
    flow = quantize_and_check(parse(MATMULS[name]), target, at_least=35)
    assert len(flow.plan.integer_nodes) == 1


SHAPES = {"static": "2, 4, 8", "dynamic": "N, M, 8", "matrix": "3, 8"}
TAILS = {
    "bias": "y = Add (t, b)",
    "bias-first": "a = Add (b, t) y = Neg (a)",
    "row-bias": "a = Add (t, row) y = Neg (a)",
    "one-bias": "a = Add (t, one) y = Neg (a)",
    "bias-relu": "a = Add (t, b) r = Relu (a) y = Neg (r)",
    "bias-relu-product": "a = Add (t, b) r = Relu (a) u = MatMul (r, w) y = Add (u, b)",
    "residual": "y = Add (t, x)",
    "residual-first": "a = Add (x, t) y = Neg (a)",
    "computed-bias": "a = Add (t, z) y = Neg (a)",
    "relu": "r = Relu (t) y = Neg (r)",
    "relu-out": "y = Relu (t)",
    "relu-twice-read": "r = Relu (t) n = Neg (r) y = Mul (r, n)",
    "relu-product-and-more": "r = Relu (t) u = MatMul (r, w) n = Neg (r) y = Mul (u, n)",
    "clip": "r = Clip (t, one, two) y = Neg (r)",
    "relu-clip-out": "r = Relu (t) y = Clip (r, low, two)",
    "sigmoid": "s = Sigmoid (t) y = MatMul (s, w)",
    "product-and-more": "u = MatMul (t, w) n = Tanh (t) y = Mul (u, n)",
    "gelu": "a = Add (t, b) d = Div (a, two) e = Erf (d) p = Add (e, one) m = Mul (a, p) y = MatMul (m, w)",
    "scaled": "a = Mul (t, two) y = Neg (a)",
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tail", TAILS)
def test_products_are_integer_kernels_whatever_follows(shape, tail):
    """ONNX Runtime fuses much of this with the product, in float, before it looks for integers."""
    z = ", float[8] z" if "z)" in TAILS[tail] else ""
    text = f"""g (float[{SHAPES[shape]}] x{z}) => (float[{SHAPES[shape]}] y)
        <float[8, 8] w, float[8] b, float[1, 8] row, float one, float two, float low>
        {{ t = MatMul (x, w) {TAILS[tail]} }}"""
    model = parse(text, one=1.0, two=2.0, low=0.0)
    flow = quantize_and_check(model, "onnxruntime", at_least=25)
    assert "MatMul" not in flow.floats
    assert "Gemm" not in flow.floats


def test_a_product_that_is_output_and_operand_stays_float():
    text = """g (float[N, M, 8] x) => (float[N, M, 8] t, float[N, M, 8] y) <float[8, 8] w>
        { t = MatMul (x, w) u = MatMul (t, w) y = Neg (u) }"""
    flow = quantize_and_check(parse(text), "onnxruntime")
    assert flow.planned("MatMul") == 1
    assert "only one of these" in {n.op_type: n.reason for n in flow.plan.float_nodes.values()}["MatMul"]


DYNAMIC = {
    "two-inputs": "g (float[N, M, 8] x, float[N, 8, M] z) => (float[A, B, C] y) <float[3, 5] w> "
    "{ t = MatMul (x, z) y = MatMul (t, w) }",
    "self": "g (float[8, 8] x) => (float[8, 8] y) <float[8, 8] w> { t = MatMul (x, w) y = MatMul (t, t) }",
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_products_of_activations(name):
    dense = quantize_and_check(parse(DYNAMIC[name]), "tensorrt")
    assert dense.planned("MatMul") == 2
    flow = quantize_and_check(parse(DYNAMIC[name]), "onnxruntime")
    assert flow.planned("MatMul") == 1
    assert {n.reason for n in flow.plan.float_nodes.values()} == {
        "its second operand is computed at run time"
    }


LEFT = """g (float[N, 24, 16] x) => (float[N, 24, 16] y)
<float[24, 24] w, float[1, 24, 24] stack, float[16, 16] v> {{
    h = MatMul (x, v) r = {before} (h) t = MatMul ({product}) y = {after} (t)
}}"""
"""A product in the middle whose first operand is the constant."""


@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("product", ["w, r", "stack, r"])
@pytest.mark.parametrize(("before", "after"), [("Relu", "Relu"), ("Neg", "Tanh")])
def test_a_constant_first_operand_breaks_no_rule(before, after, product, target):
    flow = quantize(parse(LEFT.format(before=before, after=after, product=product)), target)
    check_legal(flow)
    assert "MatMul_t" in flow.plan.float_nodes
    assert_close(flow, run(flow.model, flow.feeds), run(flow.int8, flow.feeds, optimize=False), 18)


@pytest.mark.parametrize("target", EVERY)
def test_a_product_of_two_tensors_of_which_one_is_in_integers_breaks_no_rule(target):
    """As when it is excluded, and the operators around one of its operands are not."""
    text = """g (float[N, 16, 16] x, float[N, 16, 16] a) => (float[N, 16, 16] y) <float[16, 16] w> {
        h = MatMul (x, w) r = Relu (h) t = MatMul (OPERANDS) y = MatMul (t, w)
    }"""
    for operands in ("a, r", "r, a"):
        flow = quantize(parse(text.replace("OPERANDS", operands)), target, exclude=("MatMul_t",))
        check_legal(flow)


# --- what stands between two convolutions -----------------------------------------------------------

BETWEEN = {
    "add": "t = Add (c, c)",
    "add-input": "t = Add (c, x)",
    "add-constant": "s = Sigmoid (c) t = Add (s, channel)",
    "add-relu": "d = Conv (c, v) a = Add (d, c) t = Relu (a)",
    "mul": "d = Conv (c, v) t = Mul (c, d)",
    "mul-relu": "d = Conv (c, v) a = Mul (d, c) t = Relu (a)",
    "mul-constant": "s = Sigmoid (c) t = Mul (s, channel)",
    "mul-scalar": "s = Sigmoid (c) t = Mul (two, s)",
    "leaky-relu": "d = Conv (c, v) t = LeakyRelu <alpha = 0.1> (d)",
    "hard-swish": "d = Conv (c, v) t = HardSwish (d)",
    "space-to-depth": "d = SpaceToDepth <blocksize = 2> (c) t = DepthToSpace <blocksize = 2> (d)",
    "silu": "d = Conv (c, v) s = Sigmoid (d) t = Mul (d, s)",
    "softmax": "t = Softmax <axis = 1> (c)",
    "max-pool": "t = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)",
    "max-pool-ceil": "t = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (c)",
    "max-pool-dilated": "t = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (c)",
    "max-pool-padded": "d = Conv (c, v) t = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d)",
    "max-pool-same": 't = MaxPool <kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]> (c)',
    "average-pool": "t = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)",
    "average-pool-ceil": "t = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (c)",
    "average-pool-padded": "d = Conv (c, v) t = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d)",
    "average-pool-count-pad": "t = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
    "count_include_pad = 1> (c)",
    "average-pool-relu": "d = Conv (c, v) p = AveragePool <kernel_shape = [2, 2]> (d) t = Relu (p)",
    "global-average-pool": "t = GlobalAveragePool (c)",
    "reduce-max": "t = ReduceMax (c, spatial)",
    "reduce-min": "d = Conv (c, v) t = ReduceMin (d, spatial)",
    "transpose": "t = Transpose <perm = [0, 1, 3, 2]> (c)",
    "resize-nearest": 't = Resize <mode = "nearest"> (c, , twice)',
    "resize-nearest-asymmetric": 't = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
    'nearest_mode = "floor"> (c, , twice)',
    "resize-to-size": 't = Resize <mode = "nearest"> (c, , , size)',
    "slice": "t = Slice (c, start, stop, axis)",
    "slice-steps": "t = Slice (c, start, stop, axis, step)",
    "gather": "t = Gather <axis = 2> (c, rows)",
    "expand": "p = GlobalAveragePool (c) t = Expand (p, wide)",
    "tile": "t = Tile (c, repeats)",
    "concat": "d = Conv (c, v) t = Concat <axis = 2> (c, d)",
    "concat-relu": "d = Conv (c, v) k = Concat <axis = 2> (d, c) t = Relu (k)",
    "concat-twice": "t = Concat <axis = -1> (c, c)",
    "concat-constant": "t = Concat <axis = 2> (c, strip)",
    "split": "h, l = Split <axis = 2, num_outputs = 2> (c) t = Concat <axis = 3> (l, h)",
    "shuffle": "r = Reshape (c, five) p = Transpose <perm = [0, 2, 1, 3, 4]> (r) t = Reshape (p, four)",
    "squeeze": "u = Unsqueeze (c, step) t = Squeeze (u, step)",
}
"""All of it integers on ONNX Runtime."""

CONSTANTS = {
    "two": ("float", 2.0),
    "channel": ("float[1, 8, 1, 1]", None),
    "strip": ("float[2, 8, 1, 8]", None),
    "spatial": ("int64[2]", [2, 3]),
    "twice": ("float[4]", [1, 1, 2, 2]),
    "size": ("int64[4]", [2, 8, 13, 11]),
    "start": ("int64[1]", [1]),
    "stop": ("int64[1]", [7]),
    "axis": ("int64[1]", [2]),
    "step": ("int64[1]", [2]),
    "rows": ("int64[3]", [4, 1, 3]),
    "wide": ("int64[4]", [2, 8, 4, 4]),
    "repeats": ("int64[4]", [1, 1, 2, 2]),
    "five": ("int64[5]", [-1, 2, 4, 8, 8]),
    "four": ("int64[4]", [-1, 8, 8, 8]),
    "minus": ("float", -1.0),
    "one": ("float", 1.0),
    "three": ("float", 3.0),
    "six": ("float", 6.0),
    "zero": ("float", 0.0),
}


def between(middle):
    """``middle`` reads c, a rectified convolution, and gives t, which another convolution reads."""
    used = {
        name: CONSTANTS[name]
        for name in CONSTANTS
        if name in middle.replace(",", " ").replace(")", " ").split() or f"({name}" in middle
    }
    declared = "".join(f", {kind} {name}" for name, (kind, _) in used.items())
    text = f"""g (float[N, 8, 8, 8] x) => (float[A, B, C, D] y)
        <float[8, 8, 3, 3] w, float[8] b, float[8, 8, 1, 1] v{declared}> {{
            c0 = Conv <pads = [1, 1, 1, 1]> (x, w, b) c = Relu (c0) {middle} d9 = Conv (t, v) y = Neg (d9)
        }}"""
    return parse(text, opset=18, **{name: value for name, (_, value) in used.items() if value is not None})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", BETWEEN)
def test_between_convolutions(name, target):
    flow = quantize_and_check(
        between(BETWEEN[name]), target, at_least=18
    )  # a softmax of large scores is coarse
    if target == "onnxruntime":
        assert flow.floats == {"Neg"}
    else:
        assert not {"Conv"} & flow.floats


def test_the_scale_of_a_softmax_does_not_depend_on_calibration():
    """Its kernel gives 0 for values far beyond a smaller range."""
    flow = quantize(between(BETWEEN["softmax"]))
    assert flow.plan.params["t"].scale == np.float32(1 / 256)
    assert "t" not in flow.plan.observed


CLIPS = {
    "relu": "d = Conv (c, v) t = Relu (d)",
    "relu6": "d = Conv (c, v) t = Clip (d, zero, six)",
    "hard-tanh": "d = Conv (c, v) t = Clip (d, minus, one)",
    "no-lower-limit": "d = Conv (c, v) t = Clip (d, , six)",
    "negative": "d = Conv (c, v) t = Clip (d, minus, zero)",
    "nothing-passes": "d = Conv (c, v) t = Clip (d, zero, zero)",
    "without-zero": "d = Conv (c, v) t = Clip (d, one, three)",
    "relu-then-clip": "d = Conv (c, v) r = Relu (d) t = Clip (r, zero, six)",
    "clip-then-relu": "d = Conv (c, v) r = Clip (d, minus, six) t = Relu (r)",
    "clip-then-clip": "d = Conv (c, v) r = Clip (d, minus, six) t = Clip (r, , three)",
    "three-clips": "d = Conv (c, v) q = Relu (d) r = Clip (q, minus, six) t = Relu (r)",
    "three-relus": "d = Conv (c, v) q = Relu (d) r = Relu (q) t = Relu (r)",
    "clip-then-relus": "d = Conv (c, v) q = Clip (d, minus, one) r = Relu (q) t = Relu (r)",
    "twice-read": "d = Conv (c, v) r = Relu (d) t = Add (r, d)",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CLIPS)
def test_clips_after_a_convolution(name, target):
    flow = quantize_and_check(between(CLIPS[name]), target)
    assert flow.planned("Conv") == 3


STAY_FLOAT = {
    "Tanh": "d = Conv (c, v) t = Tanh (d)",
    "Elu": "d = Conv (c, v) t = Elu (d)",
    "Mish": "d = Conv (c, v) t = Mish (d)",
    "Softplus": "d = Conv (c, v) t = Softplus (d)",
    "PRelu": "d = Conv (c, v) t = PRelu (d, channel)",
    "Sub": "d = Conv (c, v) t = Sub (d, c)",
    "Max": "d = Conv (c, v) t = Max (d, c)",
    "InstanceNormalization": "d = Conv (c, v) t = InstanceNormalization (d, b, b)",
    "LRN": "d = Conv (c, v) t = LRN <size = 3> (d)",
    "GlobalMaxPool": "d = Conv (c, v) t = GlobalMaxPool (d)",
    "Resize": 'd = Conv (c, v) t = Resize <mode = "linear"> (d, , twice)',
    "Where": "m = Greater (c, two) d = Conv (c, v) t = Where (m, c, d)",
}
"""No integer kernel: the convolutions around them are quantized all the same."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", STAY_FLOAT)
def test_float_operators_between_convolutions(name, target):
    flow = quantize_and_check(between(STAY_FLOAT[name]), target, at_least=15)
    assert name in flow.floats
    assert "Conv" not in flow.floats


POOLS = {"MaxPool": "kernel_shape", "AveragePool": "kernel_shape", "GlobalAveragePool": None}


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("name", POOLS)
def test_pools_of_other_ranks(name, axes):
    kernel, sizes, ones = (", ".join(size * axes) for size in "261")
    dims = ", ".join("ABCDE"[: axes + 2])
    attributes = f"<kernel_shape = [{kernel}]>" if POOLS[name] else ""
    flow = quantize_and_check(
        parse(
            f"""g (float[N, 4, {sizes}] x) => (float[{dims}] y) <float[8, 4, {kernel}] w, float[8, 8, {ones}] v>
            {{ c = Conv (x, w) p = {name} {attributes} (c) d = Conv (p, v) y = Neg (d) }}"""
        ),
        "onnxruntime",
    )
    assert flow.floats == {"Neg"}


AVERAGES = {
    "plain": ("", 0),
    "dilations-of-one": ("dilations = [1, 1]", 0),
    "dilated": ("dilations = [2, 1]", 1),
    "rounded": ("strides = [3, 2], ceil_mode = 1", 0),
    "rounded-and-padded": ("strides = [3, 2], ceil_mode = 1, pads = [1, 0, 0, 1]", 0),
    "rounded-and-counted": ("strides = [3, 2], ceil_mode = 1, count_include_pad = 1", 0),
    "rounded-padded-and-counted": (
        "strides = [3, 2], ceil_mode = 1, count_include_pad = 1, pads = [1, 0, 0, 1]",
        1,
    ),
}
"""Attributes of an average pool, and how many pools then stay float."""


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "qnn"])
@pytest.mark.parametrize("name", AVERAGES)
def test_average_pools_are_computed_as_they_are_written(name, target):
    attributes, floats = AVERAGES[name]
    model = parse(
        f"""g (float[N, 8, 12, 12] x) => (float[A, B, C, D] y) <float[8, 8, 1, 1] w, float[8, 8, 1, 1] v> {{
            c = Conv (x, w) p = AveragePool <kernel_shape = [3, 3], {attributes}> (c)
            d = Conv (p, v) y = Neg (d)
        }}""".replace(", >", ">"),
        opset=19,
        ir_version=9,
    )
    flow = quantize_and_check(model, target)
    plain, fused = (run(flow.int8, flow.feeds, optimize=optimize) for optimize in (False, True))
    assert_close(flow, plain, fused, EXACT)
    if target != "openvino":  # which has no integer kernel for it
        reasons = [node.reason for node in flow.plan.float_nodes.values() if node.op_type == "AveragePool"]
        assert len(reasons) == floats
        assert all("the integer kernel" in reason for reason in reasons)


COMPUTED = {
    "response": "r = Conv (g, f) y = Mul (r, k)",
    "response-is-the-output": "y = Conv (g, f)",
    "scaled-and-shifted": "r = Conv (g, f) s = Mul (r, k) o = Add (s, k) y = Sigmoid (o)",
    "clipped": "r = Conv (g, f) s = Relu (r) y = Mul (s, k)",
    "float-data": "h = Tanh (g) r = Conv (h, f) y = Mul (r, k)",
    "float-filters": "h = Tanh (f) r = Conv (g, h) y = Mul (r, k)",
    "depthwise": "h = Transpose <perm = [1, 0, 2, 3]> (f) r = Conv <group = 8> (g, h) y = Mul (r, k)",
    "transposed": "h = Transpose <perm = [1, 0, 2, 3]> (f) r = ConvTranspose (g, h) y = Mul (r, k)",
    "matrix": "p = GlobalAveragePool (g) q = Flatten (p) h = Tanh (z) y = Gemm <transB = 1> (h, q)",
    "bias": "p = GlobalAveragePool (f) h = Squeeze (p) r = Conv (x, w, h) y = Mul (r, k)",
}
"""Operators whose weights or bias are features of another input; the shared weights are constant."""


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-avx2", "openvino", "tensorrt8", "qnn", "tvm"])
@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed_at_run_time(name, target):
    output = "float[A, B] y" if name == "matrix" else "float[A, B, C, D] y"
    more = ", float[5, 8] z" if name == "matrix" else ""
    flow = quantize(
        parse(
            f"""g (float[1, 4, 7, 7] t, float[1, 4, 16, 16] x{more}) => ({output})
            <float[8, 4, 3, 3] w, float[8] b, float k> {{
                c = Conv (t, w, b) f = Relu (c) d = Conv (x, w, b) g = Relu (d) {COMPUTED[name]}
            }}""",
            k=0.02,
        ),
        target,
    )
    check(flow, at_least=18)
    assert "Conv" in flow.plan.integer_nodes.values()


CUBIC = {
    "scales": ('r = Resize <mode = "cubic"> (c, , scales)', {"scales": [1, 1, 1.5, 0.5]}),
    "sizes": ('r = Resize <mode = "cubic"> (c, , , sizes)', {"sizes": [1, 8, 3, 9]}),
    "after-a-float-node": (
        'e = Tanh (c) r = Resize <mode = "cubic", nearest_mode = "ceil"> (e, , scales)',
        {"scales": [1, 1, 0.5, 2]},
    ),
    "cropped": (
        'r = Resize <mode = "cubic", coordinate_transformation_mode = "tf_crop_and_resize"> (c, roi, scales)',
        {"roi": [0, 0, 0.1, 0.1, 1, 1, 1.3, 1.3], "scales": [1, 1, 0.5, 1.5]},
    ),
}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "qnn"])
@pytest.mark.parametrize("name", CUBIC)
def test_a_cubic_resize_between_integer_convolutions_runs(name, target):
    """The runtime must not give it the layout of the convolutions, which its cubic kernel does not take."""
    nodes, given = CUBIC[name]
    kinds = {"scales": "float[4]", "sizes": "int64[4]", "roi": "float[8]"}
    declared = ", ".join(f"{kinds[constant]} {constant}" for constant in given)
    model = parse(
        f"""g (float[1, 8, 6, 6] x) => (float[A, B, C, D] y)
        <float[8, 8, 1, 1] w, float[4, 8, 1, 1] v, {declared}> {{
            c = Conv (x, w) {nodes} d = Conv (r, v) y = Neg (d)
        }}""",
        opset=18,
        **given,
    )
    flow = quantize_and_check(model, target)
    assert_close(flow, run(flow.int8, flow.feeds, optimize=False), run(flow.int8, flow.feeds), EXACT)


# --- normalization ----------------------------------------------------------------------------------

NORM = "float[{0}] gamma, float[{0}] beta, float[{0}] mean, float[{0}] var"
BATCHNORMS = {
    "behind a Concat": (
        "8",
        "a = Relu (c) j = Concat <axis = 1> (c, a)",
        "[4, 8, 1, 1] v, float[4, 8, 1, 1] w",
    ),
    "before padding": ("4", "j = Relu (c)", "[4, 4, 3, 3] v, float[4, 8, 1, 1] w"),
    "behind a pool that others read": (
        "4",
        "j = MaxPool <kernel_shape = [1, 1]> (c)",
        "[4, 4, 1, 1] v, float[4, 8, 1, 1] w",
    ),
}


def normalized(kind, **given):
    """A BatchNormalization between convolutions that cannot take it in."""
    channels, nodes, weights = BATCHNORMS[kind]
    conv = "Conv <pads = [1, 1, 1, 1]> (r, v)" if "padding" in kind else "Conv (r, v)"
    last = "e = Add (d, j) y = Neg (e)" if "others" in kind else "y = Neg (d)"
    return parse(
        f"""g (float[N, 8, 6, 6] x) => (float[A, B, C, D] y) <float{weights}, {NORM.format(channels)}> {{
            c = Conv (x, w) {nodes} n = BatchNormalization (j, gamma, beta, mean, var) r = Relu (n) d = {conv} {last}
        }}""",
        **given,
    )


@pytest.mark.parametrize("kind", BATCHNORMS)
@pytest.mark.parametrize("target", ["qnn", "snpe"])
def test_a_batchnorm_that_no_layer_takes_in_runs_in_integers(kind, target):
    flow = quantize_and_check(normalized(kind), target, at_least=20)
    assert flow.planned("BatchNormalization") == 1
    assert not flow.floats
    read = {p.input_index for p in flow.plan.points if p.consumer == "BatchNormalization_n"}
    assert read == {0, 1}
    assert [b.input_index for b in flow.plan.biases if b.consumer == "BatchNormalization_n"] == [2]


def test_a_batchnorm_behind_a_concat_is_a_convolution_on_onnxruntime():
    assert (
        not {"BatchNormalization", "Concat"}
        & quantize_and_check(normalized("behind a Concat"), "onnxruntime").floats
    )


@pytest.mark.parametrize("target", ["tensorrt", "vitis-xint8"])
def test_a_batchnorm_stays_float_where_no_kernel_takes_it(target):
    flow = quantize_and_check(normalized("behind a Concat"), target, at_least=15)
    assert "BatchNormalization" in flow.floats


def test_a_batchnorm_of_raw_features_of_different_sizes_stays_float():
    sizes = np.array([0.01, 3.0, 900.0])
    model = parse(
        """g (float[N, 3] x) => (float[N, 4] y)
        <float[3] gamma, float[3] beta, float[3] mean, float[3] var, float[3, 4] w> {
            n = BatchNormalization (x, gamma, beta, mean, var) y = Gemm (n, w)
        }""",
        mean=sizes,
        var=sizes**2,
        gamma=1.0,
        beta=0.0,
    )
    flow = quantize(model, "qnn")
    assert "raw features" in flow.plan.float_nodes["BatchNormalization_n"].reason


def test_a_batchnorm_with_computed_statistics_stays_float():
    model = parse(
        """g (float[N, 3, 4, 4] x, float[3] mean) => (float[A, B, C, D] y)
        <float[3] gamma, float[3] beta, float[3] var, float[4, 3, 1, 1] w> {
            n = BatchNormalization (x, gamma, beta, mean, var) y = Conv (n, w)
        }"""
    )
    flow = quantize(model, "qnn")
    assert flow.floats == {"BatchNormalization"}
