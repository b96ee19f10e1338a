"""What targets do not take, each rule broken alone."""

import numpy as np
import pytest
from graphs import parse
from qdq_models import (
    DATA_ONLY,
    INT32_BIAS,
    NO_Q,
    SIGNED,
    VALUES,
    WRONG_FOR_TENSORRT,
    conv,
    messages,
    named,
    subject,
)

from onnxq.graph.qdq.read_qdq import is_stored
from onnxq.targets import TARGETS
from onnxq.verify.legality import check


@pytest.mark.parametrize(("changes", "expected", "_"), WRONG_FOR_TENSORRT.values(), ids=WRONG_FOR_TENSORRT)
def test_what_tensorrt_does_not_take(changes, expected, _):
    found = check(subject(conv(SIGNED, NO_Q, *changes), "tensorrt"))
    assert found.status == "failed"
    assert expected in messages(found)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_a_right_model_passes(target):
    right = conv(SIGNED, NO_Q) if target == "tensorrt" else conv()
    found = check(subject(right, target))
    assert found.status == "passed"
    assert found.findings == ()
    assert found.counts == {"layers": 1, "weighted": 1}


def test_each_finding_says_what_to_do():
    for changes, *_ in WRONG_FOR_TENSORRT.values():
        found = check(subject(conv(SIGNED, NO_Q, *changes), "tensorrt"))
        assert all(finding.advice for finding in found.errors)


def test_nothing_quantized_is_not_passed():
    model = named(parse("g (float[N, 8] x) => (float[N, 4] y) <float[8, 4] w> { y = MatMul (x, w) }"))
    found = check(subject(model, "tensorrt"))
    assert found.status == "not checked"
    assert "nothing is quantized" in found.summary


ONNXRUNTIME = {
    "no Q after": ([NO_Q], "n_y: a node or the graph reads its output in float"),
    "16 bits": ([{"z": ("uint16 z", 128)}], "its input 0 is uint16, which onnxruntime does not compute with"),
    "an 8-bit bias": (
        [INT32_BIAS, {"b": ("int8[16] b", 3)}],
        "its bias is int8; onnxruntime takes float, int32",
    ),
    "another scale of the bias": (
        [INT32_BIAS, {"m": ("float[16] m", 2 * VALUES["s"] * VALUES["t"])}],
        "its bias has another scale than input scale x weight scale",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), ONNXRUNTIME.values(), ids=ONNXRUNTIME)
def test_what_onnxruntime_does_not_take(changes, expected):
    opset = 21 if "uint16" in str(changes) else 13
    found = check(subject(conv(*changes, opset=opset), "onnxruntime"))
    assert expected in messages(found)


def test_a_bias_with_the_right_scale_is_taken():
    assert check(subject(conv(INT32_BIAS), "onnxruntime")).findings == ()


def test_a_scale_a_channel_that_repeats_one_scale_is_taken():
    """So ONNX Runtime is kept from quantizing a float convolution."""
    repeated = {
        "before": "q = QuantizeLinear (x, s, z) d = DequantizeLinear <axis = 1> (q, sc, zc)",
        "sc": ("float[16] sc", VALUES["s"]),
        "zc": ("uint8[16] zc", VALUES["z"]),
    }
    found = check(subject(conv(repeated, DATA_ONLY), "onnxruntime"))
    assert found.findings == ()


def test_q_and_dq_that_differ_are_told():
    other = {
        "before": "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s2, z)",
        "s2": ("float s2", 0.05),
    }
    found = check(subject(conv(other), "onnxruntime"))
    assert found.status == "passed"
    assert "quantized with one scale and dequantized with another" in messages(found, "warning")


def test_scales_a_channel_need_opset_13():
    assert "opset 12" in messages(check(subject(conv(opset=12, check=False), "onnxruntime")))


def test_integer_operators_are_for_onnxruntime_only():
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y)
    <float s, uint8 z, int8[16,16,1,1] w, float[16] t, int8[16] o> {
        q = QuantizeLinear (x, s, z) r = QLinearConv (q, s, z, w, t, o, s, z) y = DequantizeLinear (r, s, z)
    }"""
    model = named(parse(text, **{n: VALUES[n] for n in ("s", "z", "w", "t", "o")}))
    assert check(subject(model, "onnxruntime")).status == "passed"
    assert "QLinearConv is an operator that openvino does not read" in messages(
        check(subject(model, "openvino"))
    )


def test_q_around_an_operator_without_integers_is_told():
    after = {
        "after": """r = QuantizeLinear (c, u, p) e = DequantizeLinear (r, u, p) h = Tanh (e)
        f = QuantizeLinear (h, u, p) y = DequantizeLinear (f, u, p)"""
    }
    found = check(subject(conv(after), "onnxruntime"))
    assert found.status == "passed"
    assert "n_h: it is between Q/DQ, but onnxruntime has no integer kernel for Tanh" in messages(
        found, "warning"
    )


def test_weights_that_leave_no_room_for_16_bit_sums_are_told():
    found = check(subject(conv(), "onnxruntime-avx2"))
    assert "sums of 16 bits may saturate" in messages(found, "warning")


def test_scales_that_are_no_powers_of_two():
    exact = {"s": ("float s", 0.5), "t": ("float t", 0.25), "o": ("int8 o", 0), "u": ("float u", 1)}
    plain = {"weights": "v = DequantizeLinear (w, t, o)"}
    signed = {"z": ("int8 z", 0), "p": ("int8 p", 0)}
    assert messages(check(subject(conv(signed, exact, plain), "vitis-xint8"))) == ""
    third = {**exact, "t": ("float t", 0.3)}
    assert "weights is no power of two" in messages(check(subject(conv(signed, third, plain), "vitis-xint8")))


def test_weights_of_one_scale_where_the_target_takes_no_more():
    text = """g (float[4,16] x) => (float[4,8] y)
    <float s, uint8 z, int8[16,8] w, float[8] t, int8[8] o, float u, uint8 p> {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear <axis = 1> (w, t, o)
        c = MatMul (d, v) r = QuantizeLinear (c, u, p) y = DequantizeLinear (r, u, p)
    }"""
    model = named(parse(text, s=0.1, z=128, w=3, t=np.linspace(0.1, 0.2, 8), o=0, u=0.1, p=128))
    assert "qnn takes one scale for them" in messages(check(subject(model, "qnn")))
    assert check(subject(model, "onnxruntime")).status == "passed"


def test_activations_of_an_operator_with_a_format_of_its_own():
    """OpenVINO's ConvTranspose takes signed data only."""
    text = """g (float[1,16,8,8] x) => (float[1,8,16,16] y)
    <float s, {kind} z, int8[16,8,2,2] w, float t, int8 o> {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
        y = ConvTranspose <strides = [2, 2]> (d, v)
    }}"""
    values = {"s": 0.1, "w": 3, "t": 0.1, "o": 0}
    signed = named(parse(text.format(kind="int8"), **values, z=0))
    unsigned = named(parse(text.format(kind="uint8"), **values, z=128))
    assert check(subject(signed, "openvino")).status == "passed"
    assert "its input 0 is uint8" in messages(check(subject(unsigned, "openvino")))


def test_constants_of_exporters_count_too():
    """PyTorch writes scales as Constant nodes, and weights as float -> Q -> DQ."""
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) <float[16,16,1,1] w, float[16] t, int8[16] o> {
        s = Constant <value_float = 0.03> () z = Constant <value = int8 {0}> ()
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
        k = QuantizeLinear <axis = 0> (w, t, o) v = DequantizeLinear <axis = 0> (k, t, o)
        y = Conv (d, v)
    }"""
    model = named(parse(text, t=VALUES["t"], o=0))
    found = check(subject(model, "tensorrt"))
    assert (found.status, found.counts) == ("passed", {"layers": 1, "weighted": 1})


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_asked(target):
    found = check(subject(conv(), target))
    assert found.status in ("passed", "failed")
    assert isinstance(found.findings, tuple)


def test_weights_are_followed_through_a_transpose():
    """So PyTorch writes a linear layer: [out, in], scales along 0, then transposed."""
    text = """g (float[4,16] x) => (float[4,8] y) <float s, int8 z, int8[8,16] w, float[{size}] t, int8[{size}] o> {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
        v = DequantizeLinear <axis = {axis}> (w, t, o) u = Transpose <perm = [1, 0]> (v) y = MatMul (d, u)
    }}"""
    for size, axis, status in ((8, 0, "passed"), (16, 1, "failed")):
        scales = np.linspace(0.1, 0.2, size)
        model = named(parse(text.format(size=size, axis=axis), s=0.1, z=0, w=3, t=scales, o=0))
        found = check(subject(model, "tensorrt"))
        assert (found.status, found.counts["layers"]) == (status, 1)


def test_weights_in_blocks():
    text = """g (float[4,64] x) => (float[4,8] y) <{kind}[64,8] w, float[{blocks},8] t> {{
        v = DequantizeLinear <axis = 0, block_size = 32> (w, t) y = MatMul (x, v)
    }}"""
    model = named(parse(text.format(kind="int8", blocks=2), opset=21, ir_version=10, w=3, t=0.1))
    assert check(subject(model, "onnxruntime")).status == "passed"
    assert "weights are int8" in messages(check(subject(model, "qnn")))


@pytest.mark.parametrize(("zero", "expected"), [("c", True), ("x", False)])
def test_a_difference_is_stored_only_if_both_sides_are(zero, expected):
    graph = parse(
        f"g (float[2] x) => (float[2] y) <float[2] w, float[2] c> {{ d = Sub(w, {zero})  y = Add(d, x) }}",
    ).graph
    assert is_stored(graph.node(0).outputs[0]) is expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("dilations = [1, 1]", "the integer kernel does not know its attribute dilations"),
        ("ceil_mode = 1, count_include_pad = 1", "with ceil_mode 1 and count_include_pad 1 together"),
        ("ceil_mode = 1", ""),
    ],
)
@pytest.mark.parametrize(("target", "severity"), [("onnxruntime", "error"), ("qnn", "warning")])
def test_attributes_that_the_integer_kernel_does_not_compute(attributes, expected, target, severity):
    after = {
        "after": f"""r = QuantizeLinear (c, u, p) e = DequantizeLinear (r, u, p)
        h = AveragePool <kernel_shape = [2, 2], {attributes}> (e)
        f = QuantizeLinear (h, u, p) y = DequantizeLinear (f, u, p)"""
    }
    found = messages(check(subject(conv(after, opset=19), target)), severity)
    assert (f"n_h: {expected}" in found) if expected else "n_h" not in found


@pytest.mark.parametrize(
    ("operator", "target", "expected"),
    [
        ("Conv", "onnxruntime", []),
        ("Conv", "qnn", []),
        ("MatMul", "qnn", ["warning"]),
        ("MatMul", "openvino", []),
    ],
)
def test_weights_that_are_computed_break_no_rule_in_float(operator, target, expected):
    text = f"""g (float[1,8,8,8] x, float[8,8,8,8] t) => (float[A,B,C,D] y) <float s, int8 z, float u> {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
        r = QuantizeLinear (t, u, z) e = DequantizeLinear (r, u, z) y = {operator} (d, e)
    }}"""
    if target == "qnn":
        text = text.replace("int8 z", "uint8 z")
    found = check(subject(named(parse(text, s=0.1, z=0, u=0.2)), target))
    assert [finding.severity for finding in found.findings] == expected
