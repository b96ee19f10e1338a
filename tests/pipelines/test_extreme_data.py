"""Data that is finite, fits the inputs, and still is not what a model gets in use: blank, or extreme."""

from contextlib import suppress

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from cli import save_model
from graphs import parse

import onnxq
from onnxq.algorithms.channels.channel_moments import moments


@pytest.fixture
def normal(tmp_path, monkeypatch):
    save_model(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return np.random.default_rng(0).standard_normal((15, 3, 8, 8)).astype(np.float32)


def quantized(data, **options):
    config = onnxq.QuantConfig(threads=1, verify="off", **options)
    return onnxq.quantize_static("m.onnx", "o.onnx", [{"x": row[None]} for row in data], config)


@pytest.mark.parametrize("values", [np.zeros(15), np.full(15, 7.5), np.arange(15)])
def test_blank_samples_are_told(normal, values):
    blank = np.zeros_like(normal) + values.astype(np.float32)[:, None, None, None]
    assert any("THE DATA IS BLANK" in warning for warning in quantized(blank).warnings)
    dynamic = onnxq.QuantConfig(mode="dynamic", include=("op:Conv",))
    result = onnxq.quantize_dynamic("m.onnx", "o.onnx", dynamic, [{"x": row[None]} for row in blank])
    assert any("THE DATA IS BLANK" in warning for warning in result.warnings)


def test_statistics_of_blank_samples_are_told(normal):
    np.savez("d.npz", x=np.zeros_like(normal))
    onnxq.calibrate("m.onnx", "d.npz", onnxq.QuantConfig(save_statistics="s.npz"))
    result = onnxq.quantize_static("m.onnx", "o.onnx", config=onnxq.QuantConfig(from_table="s.npz"))
    assert any("THE DATA IS BLANK" in warning for warning in result.warnings)


def test_one_sample_with_content_is_enough(normal):
    normal[:14] = 0
    assert not any("BLANK" in warning for warning in quantized(normal).warnings)


@pytest.mark.parametrize("size", [1e12, 1e20, 1e30])
@pytest.mark.parametrize("where", [slice(2, 3), slice(4, 5), slice(None)])
def test_extreme_samples_end_in_a_model_or_an_error_of_ours(normal, size, where):
    normal[where] *= np.float32(size)
    with suppress(onnxq.OnnxqError):
        assert quantized(normal, floor=0).plan.integer_nodes


CACHE = """g (float[B,S,8] x, float[B,P,8] past) => (float[B,S,8] y, float[B,T,8] present)
<float[8,8] v, float[8,8] w> {
    k = MatMul (x, v) present = Concat<axis = 1> (past, k) t = Transpose<perm = [0, 2, 1]> (present)
    s = MatMul (x, t) p = Softmax<axis = -1> (s) o = MatMul (p, present) y = MatMul (o, w) }"""

WINDOW = """g (float[B,S,8] x) => (float[B,T,8] y)
<float[8,8] v, float[8,8] w, int64[1] first = {4}, int64[1] last = {999}, int64[1] axis = {1}> {
    h = MatMul (x, v) r = Relu (h) rest = Slice (r, first, last, axis) m = MatMul (rest, w)
    y = Concat<axis = 1> (r, m) }"""


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "qnn", "tensorrt"])
@pytest.mark.parametrize("text", [CACHE, WINDOW])
def test_what_reads_an_empty_tensor_stays_float(tmp_path, text, target):
    ir.save(parse(text), tmp_path / "f.onnx")
    random = np.random.default_rng(0)
    feeds = {"x": random.standard_normal((12, 1, 4, 8)).astype(np.float32)}
    if text is CACHE:
        feeds["past"] = np.zeros((12, 1, 0, 8), np.float32)
    data = [{name: array[i] for name, array in feeds.items()} for i in range(12)]
    config = onnxq.QuantConfig(target=target, verify="off", floor=0)
    result = onnxq.quantize_static(tmp_path / "f.onnx", tmp_path / "o.onnx", data, config)
    assert result.plan.integer_nodes
    told = [text for text in result.warnings if "EMPTY IN EVERY SAMPLE" in text]
    because = [name for name, node in result.plan.float_nodes.items() if "was empty in every" in node.reason]
    assert bool(told) == bool(because)
    if text is WINDOW:
        assert because
    session = onnxruntime.InferenceSession(tmp_path / "o.onnx", providers=["CPUExecutionProvider"])
    longer = {"x": random.standard_normal((1, 6, 8)).astype(np.float32)}
    session.run(None, longer if text is WINDOW else longer | {"past": longer["x"]})


def test_nothing_but_empty_tensors_is_an_error(tmp_path):
    text = "g (float[B,S,8] x, float[B,P,8] z) => (float[B,P,8] y) <float[8,8] w> { y = MatMul (z, w) }"
    ir.save(parse(text), tmp_path / "f.onnx")
    data = [{"x": np.ones((1, 2, 8), np.float32), "z": np.zeros((1, 0, 8), np.float32)}] * 5
    with pytest.raises(onnxq.CalibrationError, match=r"empty in every sample: z; .*nothing to quantize"):
        onnxq.quantize_static(tmp_path / "f.onnx", tmp_path / "o.onnx", data)


def test_squares_that_float32_cannot_hold():
    array = np.array([[3e30, -4e30], [1.0, 2.0]], np.float32)
    np.testing.assert_allclose(moments(array, (2, 1)).squares, [2.5e61, 5.0], rtol=1e-6)
    small = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    expected = np.square(small).sum(dtype=np.float64)
    np.testing.assert_allclose(moments(small, ()).squares, expected, rtol=1e-6)
