"""Graphs as they come: bodies, shared and odd constants, strange types, missing names and shapes."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from flow import check, quantize, quantize_and_check
from graphs import feeds_for, parse

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.pipelines.dynamic import quantize_dynamic
from onnxq.pipelines.static import quantize_static

TARGETS = ["onnxruntime", "tensorrt"]
both = pytest.mark.parametrize("target", TARGETS)

X = "float[N, 8, 8, 8] x"
WEIGHTS = "float[8, 8, 1, 1] w, float[8] b, float[8, 8, 1, 1] v"


def graph(nodes, inputs=X, outputs="float[A, B, C, D] y", weights=WEIGHTS, **given):
    options = {"opset": given.pop("opset", 13)}
    return parse(f"g ({inputs}) => ({outputs}) <{weights}> {{ {nodes} }}", **options, **given)


# --- bodies -----------------------------------------------------------------------------------------

BODIES = {
    "if-reads-a-quantized-tensor": graph(
        """c = Conv (x, w, b) r = Relu (c)
        y = If (k) <then_branch = t () => (float[N, 8, 8, 8] n) { n = Neg (r) },
                    else_branch = e () => (float[N, 8, 8, 8] d) { d = Conv (r, v) }>""",
        f"{X}, bool k",
    ),
    "if-between-convolutions": graph(
        """c = Conv (x, w, b)
        z = If (k) <then_branch = t () => (float[N, 8, 8, 8] r) { r = Relu (c) },
                    else_branch = e () => (float[N, 8, 8, 8] d) { d = Abs (c) }>
        f = Conv (z, v) y = Neg (f)""",
        f"{X}, bool k",
    ),
    "relu-in-a-body": graph(
        """c = Conv (x, w, b)
        y = If (k) <then_branch = t () => (float[N, 8, 8, 8] r) { r = Relu (c) },
                    else_branch = e () => (float[N, 8, 8, 8] i) { i = Identity (c) }>""",
        f"{X}, bool k",
    ),
    "loop-reads-a-quantized-tensor": graph(
        """c = Conv (x, w, b) r = Relu (c)
        y = Loop (n, go, x) <body = l (int64 i, bool k, float[N, 8, 8, 8] s) =>
            (bool k2, float[N, 8, 8, 8] s2) { k2 = Identity (k) u = Conv (s, v) q = Tanh (u) s2 = Add (q, r) }>""",
        f"{X}, int64 n",
        weights=f"{WEIGHTS}, bool go",
        go=True,
    ),
    "loop-scans": graph(
        """c = Conv (x, w, b)
        z, o = Loop (n, go, c) <body = l (int64 i, bool k, float[N, 8, 8, 8] s) =>
            (bool k2, float[N, 8, 8, 8] s2, float[N, 8, 8, 8] m)
            { k2 = Identity (k) s2 = Tanh (s) m = Neg (s) }>
        d = Conv (z, v) y = Neg (d)""",
        f"{X}, int64 n",
        "float[A, B, C, D] y, float[L, N, 8, 8, 8] o",
        weights=f"{WEIGHTS}, bool go",
        go=True,
    ),
    "scan": graph(
        """m = MatMul (x, w) s, y = Scan <num_scan_inputs = 1, body = l (float[8] a, float[8] c) =>
            (float[8] d, float[8] e) { d = Add (a, c) e = Identity (d) }> (z, m)""",
        "float[3, 8] x",
        "float[8] s, float[3, 8] y",
        "float[8, 8] w, float[8] z",
    ),
}


@both
@pytest.mark.parametrize("name", BODIES)
def test_bodies(name, target):
    model = BODIES[name]
    feeds = feeds_for(model)
    flow = quantize_and_check(model, target, feeds=feeds, at_least=25)
    if "k" in feeds:
        flow.feeds["k"] = np.array(False)
        check(flow, at_least=20)


def test_weights_in_a_body_alone_are_nothing_to_quantize(tmp_path):
    model = graph(
        """y = If (k) <then_branch = t () => (float[N, 8, 8, 8] n) { n = Neg (x) },
                       else_branch = e () => (float[N, 8, 8, 8] d) { d = Conv (x, v) }>""",
        f"{X}, bool k",
    )
    refused(model, tmp_path, "nothing to quantize.*body of a control-flow operator.*not observe[.]$")


def test_what_dynamic_quantization_finds_in_a_body_is_advised(tmp_path):
    model = parse(
        """g (float[N, 64] x, bool k) => (float[N, 32] y) <float[64, 32] w>
        { y = If (k) <then_branch = t () => (float[N, 32] m) { m = MatMul (x, w) },
                      else_branch = e () => (float[N, 32] d) { n = MatMul (x, w) d = Neg (n) }> }"""
    )
    command = f"onnxq quantize {tmp_path / 'float.onnx'} OUTPUT --mode dynamic"
    refused(model, tmp_path, f"nothing to quantize.*finds 2 MatMul: {command}")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")


def refused(model, tmp_path, message):
    ir.save(model, tmp_path / "float.onnx")
    with pytest.raises(ModelError, match=message):
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", config=QuantConfig(samples=1))
    assert not (tmp_path / "int8.onnx").exists()


# --- constants --------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
DEAD = np.concatenate([np.zeros((2, 8, 1, 1)), rng.normal(size=(6, 8, 1, 1))])

CONSTANTS = {
    "tied-convolutions": graph(
        "c = Conv (x, w, b) r = Relu (c) d = Conv (r, w, b) e = Conv (d, w, b) y = Neg (e)"
    ),
    "tied-embedding": parse(
        """g (int64[N, M] ids) => (float[N, M, 20] y) <float[20, 8] table, float[8, 8] w> {
            e = Gather (table, ids) h = MatMul (e, w) r = Relu (h)
            t = Transpose <perm = [1, 0]> (table) y = MatMul (r, t)
        }"""
    ),
    "one-weight-two-ways": parse(
        """g (float[M, 8] x) => (float[M, 8] y) <float[8, 8] w>
        { a = Gemm <transB = 1> (x, w) r = Relu (a) c = Gemm (r, w) y = Neg (c) }"""
    ),
    "dead-channels": graph(
        "c = Conv (x, w, b) r = Relu (c) d = Conv (r, w, b) y = Neg (d)",
        w=DEAD,
        b=[0.5, 0, 1, 1, 1, 1, 1, -1],
    ),
    "dead-activation": graph(
        "c = Conv (x, w, b) r = Relu (c) d = Conv (r, v, z) y = Neg (d)",
        b=-1000,
        weights=f"{WEIGHTS}, float[8] z",
    ),
    "dead-after-relu6": graph(
        "c = Conv (x, w, b) r = Clip (c, lo, hi) d = Conv (r, v, z) y = Neg (d)",
        b=-1000,
        weights=f"{WEIGHTS}, float[8] z, float lo, float hi",
        lo=0,
        hi=6,
    ),
    "constant-activation": graph("c = Conv (x, w, b) r = Relu (c) d = Conv (r, v) y = Neg (d)", w=0, b=3),
    "constant-negative": graph("c = Conv (x, w, b) d = Conv (c, v) y = Neg (d)", w=0, b=-3),
    "huge-bias": graph(
        "c = Conv (x, w, b) d = Conv (c, v) y = Neg (d)", w=rng.normal(0, 1e-6, (8, 8, 1, 1)), b=9
    ),
    "unused-weights": graph("c = Conv (x, w, b) y = Neg (c)", weights=f"{WEIGHTS}, float[3] unused"),
    "bias-that-is-a-weight": parse(
        """g (float[M, 8] x) => (float[M, 8] y) <float[8, 8] w, float[8] b> {
            a = Gemm (x, w, b) r = Relu (a) m = Mul (r, b) c = Gemm (m, w, b) y = Neg (c)
        }"""
    ),
}


@both
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name, target):
    flow = quantize_and_check(CONSTANTS[name], target, at_least=25)
    assert not {"Conv", "Gemm", "MatMul"} & flow.floats


def old_style(opset, nodes):
    """Weights in Constant nodes."""
    constants = "".join(
        f"{name} = Constant <value = float[{','.join(map(str, shape))}] {{{', '.join(map(str, values.flat))}}}> ()\n"
        for name, shape in {"w": (8, 8, 1, 1), "b": (8,)}.items()
        for values in [rng.normal(size=shape).round(3)]
    )
    text = f'<ir_version: 3, opset_import: ["" : {opset}]> g ({X}) => (float[A, B, C, D] y) {{ {constants} {nodes} }}'
    return ir.from_proto(onnx.parser.parse_model(text))


OLD = {
    7: "c = Conv (x, w, b) r = Relu (c) d = Conv (r, w, b) y = Neg (d)",
    9: "c = Conv (x, w, b) r = Clip <min = 0.0, max = 6.0> (c) d = Conv (r, w, b) y = Neg (d)",
    11: "c = Conv (x, w, b) s = Softmax <axis = 1> (c) d = Conv (s, w, b) y = Neg (d)",
    12: "c = Conv (x, w, b) q = Squeeze <axes = [0]> (c) u = Unsqueeze <axes = [0]> (q) d = Conv (u, w) y = Neg (d)",
}


@both
@pytest.mark.parametrize("opset", OLD)
def test_old_opsets_with_weights_in_constant_nodes(opset, target):
    model = old_style(opset, OLD[opset])
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)}
    flow = quantize_and_check(model, target, feeds=feeds, at_least=18)
    assert flow.planned("Conv") == 2


@both
def test_weights_that_are_listed_as_inputs(target):
    proto = ir.to_proto(
        graph(
            "c = Conv (x, w, b) r = Relu (c) d = Conv (r, w, b) y = Neg (d)",
            opset=8,
            weights="float[8, 8, 1, 1] w, float[8] b",
        )
    )
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    flow = quantize_and_check(ir.from_proto(proto), target, feeds=feeds_for(graph("y = Neg (x)", weights="")))
    assert flow.planned("Conv") == 2


# --- inputs, outputs, types -------------------------------------------------------------------------

SIGNATURES = {
    "free-dimensions": graph(
        "c = Conv (x, w, b) r = Relu (c) d = Conv (r, v) y = Neg (d)",
        "float[A, 8, H, W] x",
        "float[A, 8, P, Q] y",
    ),
    "an-input-is-an-output": graph("c = Conv (x, w, b) y = Neg (c)", outputs=f"{X}, float[A, B, C, D] y"),
    "an-output-is-read-inside": graph(
        "c = Conv (x, w, b) r = Relu (c) d = Conv (r, v) e = Conv (d, w) y = Neg (e)",
        outputs="float[A, B, C, D] d, float[A, B, C, D] y",
    ),
    "a-clipped-output-is-read-inside": graph(
        "c = Conv (x, w, b) r = Relu (c) d = Conv (r, v) y = Neg (d)",
        outputs="float[A, B, C, D] r, float[A, B, C, D] y",
    ),
    "an-unclipped-output": graph(
        "c = Conv (x, w, b) r = Relu (c) d = Conv (r, v) y = Neg (d)",
        outputs="float[A, B, C, D] c, float[A, B, C, D] y",
    ),
    "a-product-is-output-after-a-relu": parse(
        """g (float[N, 8] x) => (float[N, 8] t, float[N, 8] y) <float[8, 8] w>
        { t = MatMul (x, w) r = Relu (t) u = MatMul (r, w) y = Neg (u) }"""
    ),
    "several-of-all-types": parse(
        """g (float[N, 8] x, float[N, 8] z, int64[N] i, bool m) =>
        (float[N, 8] y, float[N, 8] p, int64[N] q, bool n, float[N, 8] z) <float[8, 8] w>
        { a = MatMul (x, w) p = MatMul (z, w) y = Relu (a) q = Abs (i) n = Not (m) }"""
    ),
    "token-ids-and-mask": parse(
        """g (int64[N, M] ids, bool[N, M] mask) => (float[N, M, 8] y)
        <float[20, 8] table, float[8, 8] w, float zero, int64[1] last> {
            e = Gather (table, ids) u = Unsqueeze (mask, last) f = Where (u, e, zero) y = MatMul (f, w)
        }""",
        last=[2],
    ),
    "double-around-float": parse(
        """g (double[N, 8] x) => (double[N, 8] y) <float[8, 8] w>
        { a = Cast <to = 1> (x) b = MatMul (a, w) y = Cast <to = 11> (b) }"""
    ),
    "rank-known-at-run-time": parse(
        """g (float[N, 8] x, int64[R] s) => (float y) <float[8, 8] w>
        { a = MatMul (x, w) r = Reshape (a, s) m = MatMul (r, w) n = Neg (m) y = ReduceSum <keepdims = 0> (n) }"""
    ),
    "bias-known-at-run-time": graph(
        "c = Conv (x, w, z) r = Relu (c) d = Conv (r, v) y = Neg (d)", f"{X}, float[8] z"
    ),
    "weight-known-at-run-time": graph(
        "c = Conv (x, z, b) r = Relu (c) d = Conv (r, v) y = Neg (d)", f"{X}, float[8, 8, 1, 1] z"
    ),
    "left-out-inputs": graph(
        'c = Conv (x, w, ) r = Resize <mode = "nearest"> (c, , twice) d = Clip (r, , top) e = Conv (d, v) y = Neg (e)',
        weights=f"{WEIGHTS}, float[4] twice, float top",
        twice=[1, 1, 2, 2],
        top=2,
    ),
    "left-out-outputs": parse(
        """g (float[3, N, 8] x) => (float[N, 5] y)
        <float[1, 12, 8] w, float[1, 12, 4] r, float[4, 5] p, float[5] q, int64[1] first> {
            , h = GRU <hidden_size = 4> (x, w, r) s = Squeeze (h, first) y = Gemm (s, p, q)
        }""",
        first=[0],
    ),
    "recurrent": parse(
        """g (float[3, N, 8] x) => (float[3, N, 5] y)
        <float[1, 16, 8] w, float[1, 16, 4] r, float[1, 32] b, float[4, 5] p, int64[1] second> {
            o, h, c = LSTM <hidden_size = 4> (x, w, r, b) q = Squeeze (o, second) y = MatMul (q, p)
        }""",
        second=[1],
    ),
    "a-sequence-leaves": parse(
        """g (float[N, 8] x) => (seq(float[N, 4]) y) <float[8, 8] w, int64[2] s>
        { a = MatMul (x, w) y = SplitToSequence <axis = 1> (a, s) }""",
        s=[4, 4],
    ),
    "pool-indices-leave": graph(
        "c = Conv (x, w, b) p, i = MaxPool <kernel_shape = [2, 2]> (c) d = Conv (p, v) y = Neg (d)",
        outputs="float[A, B, C, D] y, int64[A, B, C, D] i",
    ),
}

FEEDS = {"s": np.array([3, 2, 8])}


@both
@pytest.mark.parametrize("name", SIGNATURES)
def test_inputs_outputs_and_types(name, target):
    model = SIGNATURES[name]
    given = {k: v for k, v in FEEDS.items() if k in {value.name for value in model.graph.inputs}}
    feeds = feeds_for(model, **given) | ({"x": np.ones((6, 8), np.float32)} if given else {})
    quantize_and_check(model, target, feeds=feeds, at_least=25)


def test_double_that_float32_does_not_hold_is_refused_by_name(tmp_path):
    text = "g (double[N, 8] x) => (double[N, 8] y) <double[8, 8] w> { y = MatMul (x, w) }"
    refused(parse(text, w=1e-300), tmp_path, "is DOUBLE, expected FLOAT")


def test_a_model_without_weights_is_refused(tmp_path):
    refused(parse("g (float[N, 8] x) => (float[N, 8] y) { y = Relu (x) }"), tmp_path, "nothing to quantize")


# --- names and domains ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["", "same"])
def test_nodes_without_names_of_their_own(name, target):
    nodes = "c = Conv (x, w, b) r = Relu (c) d = Conv (r, v) e = Conv (d, w, b) y = Neg (e)"
    model = graph(nodes)
    for node in model.graph:
        node.name = name
    flow = replace(quantize(model, target), model=graph(nodes))  # the runtime refuses equal names
    check(flow)
    assert flow.planned("Conv") == 3


@both
def test_names_that_ours_could_collide_with(target):
    model = graph(
        """x_scale = Conv (x, w, b) x_quantized = Relu (x_scale) x_dequantized = Conv (x_quantized, v)
        x_zero_point = Conv (x_dequantized, w, b) y = Neg (x_zero_point)"""
    )
    for node, name in zip(
        model.graph, ["x_QuantizeLinear", "w_DequantizeLinear", "y_1", "y", "x"], strict=True
    ):
        node.name = name
    assert quantize_and_check(model, target).planned("Conv") == 3


@both
def test_operators_of_the_runtimes_own_domain_stay_float(target):
    """ONNX does not know what type they give: the convolutions after them are quantized all the same."""
    proto = ir.to_proto(
        graph(
            "c = Conv (x, w, b) g = Tanh (c) d = Conv (g, w) f = Conv (d, v) e = Conv (f, w, b) y = Neg (e)"
        )
    )
    gelu, quick = proto.graph.node[1], proto.graph.node[5]
    gelu.op_type, gelu.domain = "Gelu", "com.microsoft"
    quick.op_type, quick.domain = "QuickGelu", "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    flow = quantize_and_check(ir.from_proto(proto), target)
    assert flow.planned("Conv") == 4
    assert flow.floats == {"Gelu", "QuickGelu"}


def test_an_operator_that_only_looks_like_a_standard_one_stays_float():
    """``local.Conv`` is a function of the model's own."""
    model = parse(
        f"g ({X}) => (float[A, B, C, D] y) <{WEIGHTS}> {{ c = Conv (x, w, b) t = local.Relu (c) d = Conv (t, v) y = Neg (d) }}",
        functions='<opset_import: ["" : 13], domain: "local"> Relu (a) => (c) { c = Tanh (a) }',
    )
    flow = quantize(model)
    check(flow)
    assert flow.floats == {"Tanh", "Neg"}
