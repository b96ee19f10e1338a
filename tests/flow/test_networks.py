"""Whole networks for every way of placing Q/DQ: planned, inserted, checked, loaded and run."""

import onnx_ir as ir
import pytest
from encoders import encoder
from flow import check, quantize, quantize_for
from graphs import parse
from trained import picture, trained

import zoo
from onnxq.targets import TARGETS

EVERYWHERE = ("qnn", "vitis-xint8", "snpe", "ppl-w8a16")
"""All operators in integers, what leaves the graph too."""

INPUTS = ("tensorrt", "tensorrt8", "openvino")
"""The inputs of weighted operators, and what else a fused sum reads."""

LINKED = ("onnxruntime", "onnxruntime-avx2", "onnxruntime-arm")
"""Weighted operators, and what stands between them."""

FEW_BITS = ("academic-w4a8", "academic-w4a4", "academic-w2a4")

FAITHFUL = 12.0
"""dB against float, random weights and one sample, for targets of 8 bits."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM")


def net(text, **given):
    return parse(text, opset=18, ir_version=8, **given)


CONV3 = "Conv <pads = [1, 1, 1, 1]>"

UNET = net(
    f"""g (float[2,3,16,16] x) => (float[2,2,16,16] y)
    <float[8,3,3,3] a, float[8] ab, float[8,8,3,3] c, float[8] cb, float[8,8,2,2] up, float[8] ub,
     float[8,16,3,3] d, float[8] db, float[2,8,1,1] e> {{
    x0 = {CONV3} (x, a, ab) x1 = Relu (x0) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x1)
    c0 = {CONV3} (p, c, cb) c1 = Relu (c0) u = ConvTranspose <strides = [2, 2]> (c1, up, ub)
    j = Concat <axis = 1> (x1, u) d0 = {CONV3} (j, d, db) d1 = Relu (d0) z = Conv (d1, e) y = Sigmoid (z) }}"""
)

MOBILE = net(
    f"""g (float[2,3,16,16] x) => (float[2,5] y)
    <float[16,3,3,3] a, float[16] ab, float[16,1,3,3] k, float[16] kb, float[8,16,1,1] s1, float[8] s1b,
     float[16,8,1,1] s2, float[16] s2b, float[16,16,1,1] o, float[16] ob, float[5,16] m, float[5] mb> {{
    a0 = {CONV3} (x, a, ab) a1 = HardSwish (a0) k0 = Conv <group = 16, pads = [1, 1, 1, 1]> (a1, k, kb)
    k1 = Relu (k0) g = GlobalAveragePool (k1) e0 = Conv (g, s1, s1b) e1 = Relu (e0) e2 = Conv (e1, s2, s2b)
    e3 = HardSigmoid (e2) t = Mul (k1, e3) o0 = Conv (t, o, ob) r = Add (o0, a1) h = HardSwish (r)
    q = GlobalAveragePool (h) f = Flatten (q) y = Gemm <transB = 1> (f, m, mb) }}"""
)

DETECTOR = net(
    """g (float[2,3,16,16] x) => (float[2,5,80] y)
    <float[8,3,3,3] a, float[8] ab, float[8,8,3,3] c, float[4,8,1,1] b1, float[1,8,1,1] s1, float[4,8,1,1] b2,
     float[1,8,1,1] s2, int64[3] boxes, int64[3] scores, float stride> {
    a0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, a, ab) ag = Sigmoid (a0) a1 = Mul (a0, ag)
    c0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (a1, c) cg = Sigmoid (c0) c1 = Mul (c0, cg)
    p = Conv (a1, b1) p1 = Reshape (p, boxes) q = Conv (a1, s1) q1 = Reshape (q, scores)
    v = Conv (c1, b2) v1 = Reshape (v, boxes) w = Conv (c1, s2) w1 = Reshape (w, scores)
    bx = Concat <axis = 2> (p1, v1) px = Mul (bx, stride) sc0 = Concat <axis = 2> (q1, w1) sc = Sigmoid (sc0)
    y = Concat <axis = 1> (px, sc) }""",
    boxes=[0, 4, -1],
    scores=[0, 1, -1],
    stride=640,
)

LSTM = net(
    """g (float[4,2,8] x) => (float[4,2,5] y)
    <float[8,8] i, float[8] ib, float[1,32,8] w, float[1,32,8] r, float[8,5] m, int64[1] one> {
    a = MatMul (x, i) b = Add (a, ib) c = Tanh (b) h, hn, cn = LSTM <hidden_size = 8> (c, w, r)
    s = Squeeze (h, one) y = MatMul (s, m) }""",
    one=[1],
)

SMALL = {
    "u-net": UNET,
    "mobile": MOBILE,
    "detector": DETECTOR,
    "lstm": LSTM,
    "encoder": encoder("gelu", "2, 6, 8"),
}

FLOATS = {
    "u-net": {"linked": {"ConvTranspose", "Sigmoid"}, "inputs": {"Sigmoid"}, "everywhere": set()},
    "mobile": {
        "linked": set(),
        "inputs": {"HardSwish", "Mul", "GlobalAveragePool"},
        "everywhere": set(),
    },
    "detector": {
        "linked": {"Concat", "Mul", "Reshape", "Sigmoid"},
        "inputs": {"Mul", "Sigmoid"},
        "everywhere": {"Concat"},
    },
    "lstm": {
        "linked": {"LSTM", "Tanh"},
        "inputs": {"Add", "LSTM", "Tanh"},
        "everywhere": {"LSTM"},
    },
    "encoder": {
        "linked": {
            "Add",
            "Div",
            "Erf",
            "LayerNormalization",
            "MatMul",
            "Mul",
            "Reshape",
            "Softmax",
            "Transpose",
        },
        "inputs": {"Add", "Div", "Erf", "LayerNormalization", "Mul", "Softmax"},
        "everywhere": {"Erf"},
    },
}
"""What stays float, for each way of placing Q/DQ."""


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("way", "targets"), [("linked", LINKED), ("inputs", INPUTS), ("everywhere", ("qnn", "snpe", "ppl-w8a16"))]
)
def test_small_networks(name, way, targets):
    for target in targets:  # 16 bits need another opset, so the model is cleaned for each
        flow = quantize(SMALL[name], target)
        check(flow, at_least=FAITHFUL)
        assert flow.floats == FLOATS[name][way], target


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_with_powers_of_two(name):
    check(quantize(SMALL[name], "vitis-xint8"), at_least=8)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("target", FEW_BITS)
def test_small_networks_with_few_bits(name, target):
    flow = quantize(SMALL[name], target)
    check(flow, at_least=-10)
    assert set(flow.plan.integer_nodes.values()) <= {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def test_scores_are_as_good_as_boxes_are_large():
    """In one range with boxes of hundreds of pixels, scores would have one or two levels."""
    flow = quantize(DETECTOR, "qnn")
    groups = [group for group in flow.plan.groups.values() if {"p", "q"} & set(group.tensors)]
    assert len(groups) == 2


# --- networks as exporters write them ---------------------------------------------------------------


@pytest.mark.parametrize(("target", "count"), [("qnn", 33), ("openvino", 31), ("tvm", 31), ("tensorrt8", 31)])
def test_resnet20(resnet20, target, count):
    model = ir.load(resnet20)
    flow = quantize(model, target, picture(model))
    check(flow, at_least=FAITHFUL)
    assert len(flow.plan.integer_nodes) == count


def test_lite0(lite0):
    """Depthwise convolutions with one scale a tensor lose most: vitis-xint8 and snpe need equalization."""
    model = ir.load(lite0)
    counts = {"onnxruntime-avx2": 61, "tensorrt8": 59, "openvino": 59, "qnn": 61}
    for flow in quantize_for(counts, model, picture(model), method="mse"):
        check(flow, at_least=10, exact=18)
        assert len(flow.plan.integer_nodes) == counts[flow.plan.target]


@pytest.mark.parametrize(("target", "count"), [("openvino", 48), ("ppl-w8a16", 202)])
def test_minilm(minilm, target, count):
    model = ir.load(minilm)
    flow = quantize(model, target, picture(model))
    check(flow, at_least=5)
    assert len(flow.plan.integer_nodes) == count


@pytest.mark.parametrize(
    ("name", "target", "count", "floats"),
    [
        ("squeezenet", "openvino", 26, {"GlobalAveragePool", "Softmax"}),
        ("squeezenet", "qnn", 41, set()),
        ("shufflenet", "tensorrt8", 63, {"AveragePool", "Relu", "Softmax"}),
        ("shufflenet", "snpe", 121, set()),
        ("inception_v1", "ppl-w8a16", 83, {"LRN"}),
        ("resnet50", "qnn", 74, set()),
        ("densenet121", "openvino", 121, {"AveragePool", "BatchNormalization", "GlobalAveragePool", "Relu"}),
    ],
)
def test_light(name, target, count, floats):
    model = trained(zoo.light(name))
    flow = quantize(model, target, picture(model))
    check(flow, at_least=FAITHFUL)
    assert len(flow.plan.integer_nodes) == count
    assert flow.floats == floats


def test_every_target_is_tried_somewhere_above():
    elsewhere = {"tvm", "tensorrt-fp8", "tensorrt-int4"}  # test_fp8.py, test_low_bits.py
    assert set(TARGETS) == {*LINKED, *INPUTS, *EVERYWHERE, *FEW_BITS, *elsewhere}
