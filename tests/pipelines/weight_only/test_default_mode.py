"""Which options lead to mode weight-only."""

import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.pipelines.weight_only.default_mode import with_mode

PRODUCTS = """g (float[N,5,64] x) => (float[N,5,64] y) <float[64,64] w> { y = MatMul (x, w) }"""
WITH_CONV = """g (float[N,8,8,64] x) => (float[N,8,8,64] y) <float[64,64] w, float[8,8,1,1] k>
    { c = Conv (x, k) y = MatMul (c, w) }"""


@pytest.mark.parametrize(
    ("text", "options", "mode"),
    [
        (PRODUCTS, {"weight": "int4", "block_size": 32}, "weight-only"),
        (PRODUCTS, {"block_size": 32}, "weight-only"),
        (PRODUCTS, {"weight": "int4", "target": "tensorrt"}, "weight-only"),
        (WITH_CONV, {"weight": "int4", "target": "tensorrt"}, "weight-only"),
        (WITH_CONV, {"weight": "int8", "block_size": 32}, "static"),
        (PRODUCTS, {"weight": "int4"}, "static"),
        (PRODUCTS, {"weight": "int8"}, "static"),
        (PRODUCTS, {}, "static"),
        (PRODUCTS, {"weight": "int4", "block_size": 32, "method": "mse"}, "static"),
        (PRODUCTS, {"weight": "int4", "block_size": 32, "mode": "static"}, "static"),
        (PRODUCTS, {"weight": "int4", "block_size": 32, "target": "qnn"}, "static"),
    ],
)
def test_weights_in_blocks_alone_need_no_calibration(text, options, mode, tmp_path, caplog):
    path = tmp_path / "m.onnx"
    ir.save(parse(text, opset=17), path)
    assert with_mode(path, QuantConfig(**options)).mode == mode
    assert ("mode weight-only is used" in caplog.text) == (mode == "weight-only")
