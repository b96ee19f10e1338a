"""The whole flow on real architectures: every weighted operator an integer kernel, outputs close to float."""

import numpy as np
import onnx_ir as ir
import pytest
from flow import check, quantize_for
from graphs import parse
from trained import picture, trained

import zoo
from onnxq.core.config import QuantConfig
from onnxq.pipelines.static import quantize_static

TARGETS = ("onnxruntime", "tensorrt")


DEEP = 25.0
"""dB between fused and plain arithmetic in a deep network: a tie rounded otherwise in an early layer
is noise for all later ones."""


@pytest.mark.parametrize("variant", zoo.LITE0_EXPORTS)
def test_lite0_is_all_integers_whatever_the_exporter(lite0_models, variant):
    model = ir.load(lite0_models[variant])
    for flow in quantize_for(TARGETS, model, picture(model), method="mse"):
        check(flow, at_least=15, exact=DEEP)  # one picture of noise, 50 layers
        assert (flow.planned("Conv"), flow.planned("Gemm")) == (49, 1)
        assert not {"Conv", "Gemm"} & flow.floats


def test_lite0_on_pictures(lite0, calibration_images, tmp_path):
    config = QuantConfig(preprocess="resize=256,crop=224,mean=127,std=128", samples=16)
    result = quantize_static(lite0, tmp_path / "int8.onnx", calibration_images, config)
    assert result.quality.sqnr > 19
    assert result.int8_bytes < 0.28 * result.float_bytes
    assert not result.warnings


LIGHT_FLOATS = {
    "bvlc_alexnet": {"LRN", "MaxPool", "Softmax"},
    "zfnet512": {"LRN", "MaxPool", "Softmax"},
    "inception_v1": {"LRN", "MaxPool", "Softmax"},
    "shufflenet": {"Conv", "Relu", "Reshape", "Transpose", "Softmax"},
    "squeezenet": {"GlobalAveragePool", "Flatten", "Softmax", "Reshape"},
    "densenet121": {
        *("BatchNormalization", "Relu", "Concat", "GlobalAveragePool"),  # the last ones
        "Conv",  # the last one, which is the graph's output
    },
}
"""What stays float on ONNX Runtime: what has no integer kernel (or a slow one: ShuffleNet's narrow groups),
what stands between such operators, and what leads to the graph's output. Not listed: the Softmax that is
the output."""


@pytest.mark.parametrize("name", zoo.LIGHT)
def test_light(name):
    model = trained(zoo.light(name))
    weighted = [node.op_type for node in model.graph if node.op_type in {"Conv", "Gemm"}]
    fast, dense = quantize_for(TARGETS, model)
    check(fast, at_least=15, exact=DEEP)
    check(dense, at_least=15)
    assert fast.floats == LIGHT_FLOATS.get(name, {"Softmax"})
    assert not {"Conv", "Gemm"} & dense.floats
    assert dense.planned("Conv") + dense.planned("Gemm") == len(weighted)


def test_light_as_it_is_in_the_file():
    """Weights in ConstantOfShape nodes, opset 9, IR version 3 with initializers among the inputs."""
    model = ir.load(zoo.light("squeezenet"))
    assert (model.ir_version, model.opset_imports[""]) == (3, 9)
    for flow in quantize_for(TARGETS, model):
        check(flow)


@pytest.mark.parametrize(("target", "warned"), [("onnxruntime", True), ("tensorrt", False)])
def test_a_model_that_mostly_stays_float_is_no_quiet_success(tmp_path, target, warned):
    text = """g (float[N, 4, 8, 8] x) => (float[N, 64, 8, 8] y, float[N, 2] z)
    <float[64, 4, 3, 3] w, float[64, 2] v> {
        y = Conv <pads = [1, 1, 1, 1]> (x, w) p = GlobalAveragePool (y) f = Flatten (p) z = MatMul (f, v)
    }"""
    ir.save(parse(text), tmp_path / "m.onnx")
    data = [{"x": np.random.default_rng(i).normal(size=(1, 4, 8, 8)).astype(np.float32)} for i in range(6)]
    config = QuantConfig(target=target)
    result = quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx", data, config)
    assert any("of the weights are kept in float" in warning for warning in result.warnings) is warned
