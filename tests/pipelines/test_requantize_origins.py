"""Q/DQ models as other tools write them: each form is converted, and computes the same afterwards."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from calibrators.session import open_session
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.numerics import sqnr
from onnxq.pipelines.requantize import Requantized, requantize

TARGETS = ("onnxruntime", "openvino", "tensorrt", "qnn")

DRAW = np.random.default_rng(11)

WEIGHTS = {
    "w": DRAW.integers(-100, 100, (6, 4, 3, 3)).astype(np.int8),
    "w4": DRAW.integers(-7, 8, (6, 4, 3, 3)).astype(np.int8),
    "u": DRAW.integers(28, 228, (6, 4, 3, 3)).astype(np.uint8),
    "m": DRAW.integers(-100, 100, (6, 5)).astype(np.int8),
    "mt": DRAW.integers(-100, 100, (5, 6)).astype(np.int8),
    "b": DRAW.integers(-9000, 9000, 6).astype(np.int32),
    "c": DRAW.integers(-2000, 2000, 5).astype(np.int32),
    "sw": DRAW.uniform(0.001, 0.002, 6).astype(np.float32),
    "sm": DRAW.uniform(0.002, 0.003, 5).astype(np.float32),
    "zw": np.zeros(6, np.int8),
    "zm": np.zeros(5, np.int8),
    "zu": np.full(6, 128, np.uint8),
    "real": DRAW.normal(0, 0.3, (6, 4, 3, 3)).astype(np.float32),
}

SCALARS = {
    "sx": np.float32(0.025),
    "sa": np.float32(0.02),
    "sb": np.float32(0.01),
    "zx": np.int8(-3),
    "za": np.int8(-20),
    "z0": np.int8(0),
    "ux": np.uint8(125),
    "ua": np.uint8(108),
}

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> net '


def save(path, body: str, opset: int = 17, **constants: np.ndarray) -> None:
    """Save a model of this text; the constants that it reads become initializers."""
    model = onnx.parser.parse_model(HEADER.format(opset=opset) + body)
    read = {name for node in model.graph.node for name in node.input}
    made = {name for node in model.graph.node for name in node.output}
    for name, array in (WEIGHTS | SCALARS | constants).items():
        if name in read - made:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(model, path)


def convert(folder, target: str, data=None) -> Requantized:
    options = {"verify": "off", "threads": 1, "method": "minmax", "quantize_outputs": True}
    config = QuantConfig(target=target, float_type="float32", **options)
    return requantize(folder / "in.onnx", folder / "out.onnx", data, config=config)


def run(path, feeds: np.ndarray) -> np.ndarray:
    return open_session(path, optimize=False).run(None, {"x": feeds})[0]


def pictures(count: int = 4) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.9, (count, 4, 8, 8)).astype(np.float32)


CONV = "Conv<pads = [1, 1, 1, 1]>"

COMPUTED = """(float[N,4,8,8] x) => (float[N,6,8,8] y)
{
    one = Identity(sx)
    wide = Constant<value = float[1] {2.5}>()
    half = Cast<to = 10>(sa)
    whole = Constant<value = int64 {-3}>()
    zero = Cast<to = 3>(whole)
    xq = QuantizeLinear(x, one, zero)
    same = Cast<to = 3>(xq)
    xd = DequantizeLinear(same, one, zero)
    size = Abs(real)
    top = ReduceMax<axes = [1, 2, 3], keepdims = 0>(size)
    steps = Constant<value = float {127.0}>()
    scale = Div(top, steps)
    many = Constant<value = int64[1] {6}>()
    zeros = ConstantOfShape<value = int8[1] {0}>(many)
    wq = QuantizeLinear<axis = 0>(real, scale, zeros)
    wd = DequantizeLinear<axis = 0>(wq, scale, zeros)
    y = CONV(xd, wd)
}""".replace("CONV", CONV)
"""PyTorch's exporters leave the computation of scales and zero points in the file."""

MOVED = """(float[N,8,8,4] x) => (float[N,6] y)
{
    xq = QuantizeLinear(x, sx, zx)
    xt = Transpose<perm = [0, 3, 1, 2]>(xq)
    xd = DequantizeLinear(xt, sx, zx)
    wd = DequantizeLinear<axis = 0>(w, sw, zw)
    a = CONV(xd, wd)
    aq = QuantizeLinear(a, sa, za)
    left, right = Split<axis = 2>(aq)
    both = Concat<axis = 2>(right, left)
    pool = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(both)
    border = Pad(pool, pads, za)
    d = DequantizeLinear(border, sa, za)
    mean = GlobalAveragePool(d)
    y = Flatten(mean)
}""".replace("CONV", CONV)
"""tf2onnx leaves operators of TensorFlow Lite that move values on integers."""

INTEGER_ENDS = """(int8[N,8,8,4] x) => (int8[N,6,8,8] y)
{
    xt = Transpose<perm = [0, 3, 1, 2]>(x)
    xd = DequantizeLinear(xt, sx, zx)
    wd = DequantizeLinear<axis = 0>(w, sw, zw)
    a = CONV(xd, wd)
    y = QuantizeLinear(a, sa, za)
}""".replace("CONV", CONV)

QOPERATOR = """(float[N,4,8,8] x) => (float[N,5] y)
{
    xq = QuantizeLinear(x, sx, ux)
    a = QLinearConv<pads = [1, 1, 1, 1]>(xq, sx, ux, w, sw, zw, sa, ua, b)
    s = com.microsoft.QLinearSigmoid(a, sa, ua, sb, ux)
    m = com.microsoft.QLinearMul(a, sa, ua, s, sb, ux, sa, ua)
    t = com.microsoft.QLinearAdd(m, sa, ua, a, sa, ua, sa, ua)
    j = com.microsoft.QLinearConcat<axis = 2>(sa, ua, t, sa, ua, a, sa, ua)
    p = MaxPool<kernel_shape = [2, 2]>(j)
    g = com.microsoft.QLinearGlobalAveragePool(p, sa, ua, sb, ua)
    f = Flatten(g)
    yq = com.microsoft.QGemm<transB = 1, alpha = 1.0>(f, sb, ua, mt, sm, zm, c, sb, ux)
    y = DequantizeLinear(yq, sb, ux)
}"""

QMATMUL = """(float[N,4,8,8] x) => (float[N,4,8,5] y)
{
    xq = QuantizeLinear(x, sx, ux)
    v = Slice(xq, start, end, axes)
    r = com.microsoft.QLinearAveragePool<kernel_shape = [1, 1]>(v, sx, ux, sx, ux)
    l = com.microsoft.QLinearLeakyRelu<alpha = 0.125>(r, sx, ux, sx, ux)
    yq = QLinearMatMul(l, sx, ux, m, sm, zm, sb, ux)
    y = DequantizeLinear(yq, sb, ux)
}"""

CLIPPED = """(float[N,4,8,8] x) => (float[N,6,8,8] y)
{
    xq = QuantizeLinear(x, sx, z0)
    low = Constant<value = int8 {-127}>()
    high = Constant<value = int8 {127}>()
    xc = Clip(xq, low, high)
    xd = DequantizeLinear(xc, sx, z0)
    wq = QuantizeLinear<axis = 0>(real, big, zw)
    lowest = Constant<value = int8 {-7}>()
    highest = Constant<value = int8 {7}>()
    wc = Clip(wq, lowest, highest)
    wd = DequantizeLinear<axis = 0>(wc, big, zw)
    y = CONV(xd, wd)
}""".replace("CONV", CONV)
"""Brevitas leaves out levels by a Clip between Q and DQ."""

WEIGHT = """(float[N,4,8,8] x) => (float[N,6,8,8] y)
{
    xq = QuantizeLinear(x, sx, z0)
    xd = DequantizeLinear(xq, sx, z0)
    wd = DequantizeLinear<axis = 0>(WEIGHT)
    y = CONV(xd, wd)
}""".replace("CONV", CONV)

NEGATIVE = {"sw": np.array([-0.004, 0.005, -0.003, 0.004, 0.0, -0.006], np.float32)}

CUT = {"start": np.array([0]), "end": np.array([6]), "axes": np.array([3])}

FORMS = {
    "computed": (COMPUTED, {}),
    "clipped": (CLIPPED, {"big": np.full(6, 0.08, np.float32)}),
    "QLinear operators": (QOPERATOR, {}),
    "QLinearMatMul": (QMATMUL, CUT),
    "negative and zero scales": (WEIGHT.replace("WEIGHT", "w, sw, zw"), NEGATIVE),
    "no zero points": (WEIGHT.replace("WEIGHT", "w, sw"), {}),
    "unsigned": (WEIGHT.replace("WEIGHT", "u, sw, zu"), {}),
    "few levels": (WEIGHT.replace("WEIGHT", "w4, sw, zw"), {}),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_the_same_afterwards(form: str, target: str, tmp_path) -> None:
    text, constants = FORMS[form]
    save(tmp_path / "in.onnx", text, **constants)
    feeds = pictures()
    result = convert(tmp_path, target, [{"x": each[None]} for each in feeds])
    assert sqnr(run(tmp_path / "in.onnx", feeds), run(tmp_path / "out.onnx", feeds)) > 30
    assert result.kept
    assert set(result.calibrated) <= {"y"}, "only what was float at the end has no scale"


@pytest.mark.parametrize("target", TARGETS)
def test_integers_that_were_moved(target: str, tmp_path) -> None:
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    save(tmp_path / "in.onnx", MOVED, pads=pads)
    feeds = pictures().transpose(0, 2, 3, 1)
    result = convert(tmp_path, target, [{"x": each[None]} for each in feeds])
    assert sqnr(run(tmp_path / "in.onnx", feeds), run(tmp_path / "out.onnx", feeds)) > 30
    assert result.kept
    written = onnx.load(tmp_path / "out.onnx").graph.node
    assert Counter(node.op_type for node in written)["Transpose"] == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_that_takes_and_gives_integers_still_does(target: str, tmp_path) -> None:
    save(tmp_path / "in.onnx", INTEGER_ENDS)
    feeds = np.random.default_rng(3).integers(-100, 100, (4, 8, 8, 4)).astype(np.int8)
    convert(tmp_path, target, [{"x": each[None]} for each in feeds])
    given, out = (run(tmp_path / name, feeds) for name in ("in.onnx", "out.onnx"))
    assert out.dtype == given.dtype == np.int8
    assert np.abs(out.astype(int) - given.astype(int)).max() <= 3


PLACES = """(float[N,4,8,8] x) => (int64[N,1,8,8] y, float[N,6,8,8] z)
{
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear<axis = 0>(w, sw, zw)
    a = CONV(xd, wd)
    aq = QuantizeLinear(a, sa, za)
    y = ArgMax<axis = 1>(aq)
    z = DequantizeLinear(aq, sa, za)
}""".replace("CONV", CONV)


@pytest.mark.parametrize("target", TARGETS)
def test_places_of_largest_integers(target: str, tmp_path) -> None:
    save(tmp_path / "in.onnx", PLACES)
    feeds = pictures()
    convert(tmp_path, target, [{"x": each[None]} for each in feeds])
    assert (run(tmp_path / "in.onnx", feeds) == run(tmp_path / "out.onnx", feeds)).mean() > 0.9


HALVES = """(float16[N,4,8,8] x) => (float16[N,6,8,8] y)
{
    xq = QuantizeLinear(x, hx, zx)
    xd = DequantizeLinear(xq, hx, zx)
    wd = DequantizeLinear<axis = 0>(w, hw, zw)
    a = CONV(xd, wd)
    r = Cast<to = 10>(a)
    t = Add(r, shift)
    y = Relu(t)
}""".replace("CONV", CONV)


@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_becomes_float32_inside(target: str, tmp_path) -> None:
    halves = {"hx": np.float16(0.025), "hw": WEIGHTS["sw"].astype(np.float16), "shift": np.float16([0.125])}
    save(tmp_path / "in.onnx", HALVES, opset=19, **halves)
    feeds = pictures().astype(np.float16)
    result = convert(tmp_path, target, [{"x": each[None]} for each in feeds])
    given, out = (run(tmp_path / name, feeds) for name in ("in.onnx", "out.onnx"))
    assert out.dtype == given.dtype == np.float16
    assert sqnr(given.astype(np.float32), out.astype(np.float32)) > 30
    assert any(result.plan.groups[name].constant for name in result.kept)


@pytest.mark.parametrize("form", ["unsigned", "few levels", "no zero points", "clipped"])
def test_weights_keep_the_scale_in_other_integers(form: str, tmp_path) -> None:
    text, constants = FORMS[form]
    save(tmp_path / "in.onnx", text, **constants)
    plan = convert(tmp_path, "tensorrt").plan
    (scale,) = (plan.params[name].scale for name, group in plan.groups.items() if group.constant)
    np.testing.assert_array_equal(scale, constants.get("big", WEIGHTS["sw"]))


DYNAMIC = """(float[N,6] x) => (float[N,5] y)
{
    xq, s, z = DynamicQuantizeLinear(x)
    p = MatMulInteger(xq, m, z, z0)
    f = Cast<to = 1>(p)
    y = Mul(f, s)
}"""

EXTENDED = """(float[N,6] x) => (float[N,5] y)
{
    xq = com.microsoft.ExtendedQuantizeLinear(x, sx, zx)
    y = com.microsoft.ExtendedDequantizeLinear(xq, sx, zx)
}"""


@pytest.mark.parametrize(("text", "node"), [(DYNAMIC, "DynamicQuantizeLinear"), (EXTENDED, "Extended")])
def test_what_has_no_scales_to_keep_is_sent_to_quantize(text: str, node: str, tmp_path) -> None:
    save(tmp_path / "in.onnx", text)
    with pytest.raises(ModelError, match=rf"is a {node}.*float model to 'onnxq quantize'"):
        convert(tmp_path, "onnxruntime")
    assert not (tmp_path / "out.onnx").exists()
