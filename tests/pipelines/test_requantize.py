"""Models with Q/DQ from elsewhere: their scales stay, and what the target needs besides is added."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from classifiers import CLASSIFIER, model_of
from onnxruntime import quantization

import onnxq
from calibrators.collect import collect
from calibrators.data.samples import Sample
from calibrators.methods import CALIBRATORS
from calibrators.session import open_session
from onnxq.calibration.qparams import compute_qparams, from_statistics
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError
from onnxq.core.numerics import sqnr
from onnxq.core.plan import QuantPlan
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.graph.qdq.strip_qdq import strip
from onnxq.pipelines.requantize import requantize
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

DATA = [{"x": np.random.default_rng(i).normal(size=(1, 4, 8, 8)).astype(np.float32)} for i in range(8)]
FEEDS = {"x": np.concatenate([each["x"] for each in DATA])}


def config(target: str, **options) -> QuantConfig:
    """Options with which scales, and what is not quantized, stay in float32."""
    options = {"float_type": "float32", **options}
    return QuantConfig(target=target, verify="off", threads=1, method="minmax", **options)


def quantized(target: str, path, **options) -> QuantPlan:
    """A Q/DQ model for ``target``, with ranges that no calibration on DATA would find."""
    model = model_of(CLASSIFIER)
    plan = make_plan(model, get_target(target), config(target, **options))
    statistics = collect(model, plan.observed, [Sample("wide", {"x": FEEDS["x"] * 1.5})])
    plan = compute_qparams(model, plan, from_statistics(statistics, CALIBRATORS["minmax"]))
    ir.save(insert_qdq(model, plan), path)
    return plan


def run(path) -> np.ndarray:
    return open_session(path, optimize=False).run(None, FEEDS)[0]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino", "academic-w4a4"])
def test_the_same_target_gets_the_same_numbers(target: str, tmp_path) -> None:
    given = quantized(target, tmp_path / "in.onnx")
    result = requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", config=config(target))
    assert result.calibrated == ()
    assert len(result.plan.points) == len(given.points)
    assert sqnr(run(tmp_path / "in.onnx"), run(tmp_path / "out.onnx")) > 60
    assert _scales(result.plan) == pytest.approx(_scales(given), rel=1e-6)


def test_scales_are_rounded_to_the_float_type_of_the_target(tmp_path) -> None:
    given = quantized("tensorrt", tmp_path / "in.onnx")
    options = config("tensorrt", float_type="float16")
    result = requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", DATA, options)
    assert result.narrowing is not None
    assert sqnr(run(tmp_path / "in.onnx"), run(tmp_path / "out.onnx")) > 40
    assert _scales(result.plan) == [float(np.float16(scale)) for scale in _scales(given)]


def _scales(plan: QuantPlan) -> list[float]:
    return sorted(float(p.scale) for n, p in plan.params.items() if not plan.groups[n].constant)


def test_weights_keep_every_integer(tmp_path) -> None:
    quantized("onnxruntime", tmp_path / "in.onnx")
    requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", config=config("onnxruntime"))
    before, after = (_integers(tmp_path / name) for name in ("in.onnx", "out.onnx"))
    assert before == after


def _integers(path) -> list[bytes]:
    stored = onnx.load(path).graph.initializer
    return sorted(i.raw_data for i in stored if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1)


def test_another_target_keeps_the_ranges_and_calibrates_the_rest(tmp_path) -> None:
    given = quantized("tensorrt", tmp_path / "in.onnx")
    with pytest.raises(CalibrationError, match="Give calibration data"):
        requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", config=config("onnxruntime"))
    assert not (tmp_path / "out.onnx").exists()
    result = requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", DATA, config("onnxruntime"))
    assert result.calibrated
    assert set(result.kept) & set(given.params)
    assert result.quality is not None
    assert result.quality.sqnr > 20
    before, after = given.params["x"], result.plan.params["x"]
    assert float(after.scale) == pytest.approx(float(before.scale), rel=1e-6), "symmetric fits into uint8"


def test_symmetric_targets_get_the_range_of_an_asymmetric_one(tmp_path) -> None:
    given = quantized("onnxruntime", tmp_path / "in.onnx")
    result = requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", DATA, config("tensorrt"))
    scale, zero = given.params["x"].scale, float(given.params["x"].zero_point)
    largest = max(zero, 255 - zero) * float(scale)
    assert float(result.plan.params["x"].scale) == pytest.approx(largest / 127, rel=1e-5)
    assert result.calibrated == ()


TRANSPOSED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4] x) => (float[N,3] y)
<float sx = {0.1}, int8 zx = {0}, float[3] sw = {0.5, 0.25, 1.0}, int8[3] zw = {0, 0, 0},
 float[3,4] w = {1.0,-2.0,0.5,3.0, 0.25,-0.25,1.0,2.0, 7.0,-7.0,1.0,0.0}>
{
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wq = QuantizeLinear<axis = 0>(w, sw, zw)
    wd = DequantizeLinear<axis = 0>(wq, sw, zw)
    wt = Transpose<perm = [1, 0]>(wd)
    y = MatMul(xd, wt)
}
"""


def test_weights_in_float_after_a_transpose_as_trainers_write_them(tmp_path) -> None:
    onnx.save(onnx.parser.parse_model(TRANSPOSED), tmp_path / "in.onnx")
    result = requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", config=config("tensorrt"))
    weights = [result.plan.params[n] for n, g in result.plan.groups.items() if g.constant]
    assert [w.scale.tolist() for w in weights] == [[0.5, 0.25, 1.0]]
    x = {"x": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)}
    one, other = (open_session(tmp_path / n, optimize=False).run(None, x)[0] for n in ("in.onnx", "out.onnx"))
    assert np.allclose(one, other)


def test_stripping_leaves_the_callers_model_and_no_q(tmp_path) -> None:
    quantized("onnxruntime", tmp_path / "in.onnx", quantize_outputs=True)
    model = ir.load(tmp_path / "in.onnx")
    count = len(list(model.graph))
    stripped = strip(model)
    assert len(list(model.graph)) == count
    assert not {n.op_type for n in stripped.model.graph} & {"QuantizeLinear", "DequantizeLinear"}
    assert [o.name for o in stripped.model.graph.outputs] == [o.name for o in model.graph.outputs]
    assert stripped.activations
    assert stripped.weights


INTEGERS = """
<ir_version: 8, opset_import: ["" : 17]>
net (int8[N,4] x) => (float[N,4] y)
<float s = {0.1}> { t = BitShift<direction = "LEFT">(x, x) y = DequantizeLinear(t, s) }
"""


WRONG_AXIS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4] x) => (float[N,3] y)
<float[3] s = {0.1, 0.2, 0.3}, int8[4,3] w = {1, -2, 3, 4, -5, 6, 7, -8, 9, 1, -1, 1}>
{ v = DequantizeLinear<axis = AXIS>(w, s)  y = MatMul(x, v) }
"""


@pytest.mark.parametrize("axis", [0, 2, 7, -3])
def test_an_axis_that_the_scales_do_not_fit_is_named(axis: int, tmp_path) -> None:
    text = WRONG_AXIS.replace("AXIS", str(axis)).replace("v = ", "[dequantize] v = ")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    with pytest.raises(ModelError, match=r"there is no axis|scales of shape"):
        requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", DATA, config("tensorrt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (INTEGERS, "no QuantizeLinear made"),
        (
            '<ir_version: 8, opset_import: ["" : 17]> net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }',
            "no QuantizeLinear and DequantizeLinear|nothing to quantize",
        ),
    ],
)
def test_what_has_no_pairs_is_refused(text: str, message: str, tmp_path) -> None:
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    with pytest.raises(ModelError, match=message):
        requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", config=config("tensorrt"))


def test_it_is_public() -> None:
    assert onnxq.requantize.__name__ == requantize.__name__
    assert onnxq.Requantized.__module__ == requantize.__module__


CLIPPED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,9,9] x) => (float[N,5,1,1] y)
{
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = ACTIVATION
    c = Conv(b, w2)
    d = Add(c, c)
    e = Relu(d)
    f = MaxPool<kernel_shape = [2, 2]>(e)
    g = Conv(f, w3)
    h = Clip(g, minus, six)
    y = GlobalAveragePool(h)
}
"""

ACTIVATIONS = {
    "relu": "Relu(a)",
    "relu6": "Clip(a, zero, six)",
    "negative": "Clip(a, minus, zero)",
    "both": "Clip(a, minus, six)",
}


def float_model(activation: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(CLIPPED.replace("ACTIVATION", activation))
    draw = np.random.default_rng(7)
    shapes = {"w1": (6, 3, 3, 3), "w2": (4, 6, 1, 1), "w3": (5, 4, 3, 3)}
    weights = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    weights |= {"zero": np.array(0.0), "six": np.array(6.0), "minus": np.array(-2.5)}
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


class Reader(quantization.CalibrationDataReader):
    """Gives the pictures to ONNX Runtime's quantizer."""

    def __init__(self) -> None:
        self._feeds = iter(PICTURES)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


PICTURES = [{"x": np.random.default_rng(i).normal(size=(1, 3, 9, 9)).astype(np.float32)} for i in range(8)]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "onnxruntime-avx2"])
@pytest.mark.parametrize("kind", [quantization.QuantType.QUInt8, quantization.QuantType.QInt8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_relu_that_the_runtimes_quantizer_dropped_comes_back(
    activation: str, kind: quantization.QuantType, target: str, tmp_path
) -> None:
    onnx.save(float_model(ACTIVATIONS[activation]), tmp_path / "float.onnx")
    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "in.onnx",
        Reader(),
        activation_type=kind,
        weight_type=quantization.QuantType.QInt8,
    )
    dropped = {node.op_type for node in onnx.load(tmp_path / "in.onnx").graph.node}
    requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", PICTURES, config(target))
    feeds = {"x": np.concatenate([each["x"] for each in PICTURES])}
    true, given, out = (
        open_session(tmp_path / f"{name}.onnx", optimize=False).run(None, feeds)[0]
        for name in ("float", "in", "out")
    )
    assert not dropped & {"Relu", "Clip"}
    assert sqnr(true, given) > 30
    assert sqnr(true, out) > 28, "without the clips it is less than 10 dB"
    names = {name for node in onnx.load(tmp_path / "out.onnx").graph.node for name in node.output}
    assert {"b", "e", "h"} <= names, "the clipped tensors keep the names that they had in float"


def test_a_range_that_only_cuts_tails_leaves_no_clip(tmp_path) -> None:
    onnx.save(float_model(ACTIVATIONS["relu"]), tmp_path / "float.onnx")
    given = config("onnxruntime", correct=("none",))
    onnxq.quantize_static(
        tmp_path / "float.onnx", tmp_path / "in.onnx", PICTURES, given.model_copy(update={"method": "mse"})
    )
    requantize(tmp_path / "in.onnx", tmp_path / "out.onnx", PICTURES, config("tensorrt"))
    clips = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node].count("Clip")
    assert clips == 1, "the model's own"
