"""Data that is finite, fits the inputs, and still is not what a model gets in use: blank, or extreme."""

from contextlib import suppress

import numpy as np
import pytest
from cli import save_model

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
        assert quantized(normal).plan.integer_nodes


def test_squares_that_float32_cannot_hold():
    array = np.array([[3e30, -4e30], [1.0, 2.0]], np.float32)
    np.testing.assert_allclose(moments(array, (2, 1)).squares, [2.5e61, 5.0], rtol=1e-6)
    small = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    expected = np.square(small).sum(dtype=np.float64)
    assert moments(small, ()).squares == expected
