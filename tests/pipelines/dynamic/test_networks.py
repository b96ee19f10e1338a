"""Dynamic quantization of a real network, and of what an exporter makes of a recurrent one with branches."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

import onnxq
from calibrators.session import open_session, saturates
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr

BRANCHES = """g (float[M,N,32] x, int64 rate) => (float[M,1,N,16] y)
    <float[1,64,32] w, float[1,64,16] r, float[1,64,32] v, float[1,64,16] s, int64 fast>
{ quick = Equal(rate, fast)
  y = If(quick) <
    then_branch = t () => (float[M,1,N,16] a) { a = LSTM<hidden_size=16>(x, w, r) },
    else_branch = e () => (float[M,1,N,16] d) { d = LSTM<hidden_size=16>(x, v, s) }> }"""
"""A detector of voices with weights for each of two sampling rates, as they are published."""

LOOP = """g (float[N,64] x, int64 times) => (float[N,64] y) <float[64,64] w, bool yes>
{ y = Loop(times, yes, x) <
    body = b (int64 i, bool go, float[N,64] h) => (bool on, float[N,64] k)
    { p = MatMul(h, w)  k = Tanh(p)  on = Identity(go) }> }"""


def outputs(path, feeds):
    return open_session(path).run(None, feeds)[0]


@pytest.mark.skipif(saturates(), reason="kernels in bodies of control flow saturate on this processor")
def test_an_lstm_in_each_branch(tmp_path):
    ir.save(parse(BRANCHES, fast=16000), tmp_path / "in.onnx")
    result = onnxq.quantize_dynamic(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert list(result.plan.integer_nodes.values()) == ["LSTM", "LSTM"]
    assert result.verdicts[0].counts == {"DynamicQuantizeLSTM": 2}
    x = np.random.default_rng(0).standard_normal((20, 1, 32)).astype(np.float32)
    for rate in (8000, 16000):
        feeds = {"x": x, "rate": np.array(rate)}
        expected = outputs(tmp_path / "in.onnx", feeds)
        assert sqnr(expected, outputs(tmp_path / "out.onnx", feeds)) > 25


@pytest.mark.skipif(saturates(), reason="kernels in bodies of control flow saturate on this processor")
def test_a_matmul_in_a_loop(tmp_path):
    ir.save(
        parse(LOOP, yes=True, w=np.random.default_rng(0).standard_normal((64, 64)) / 8), tmp_path / "in.onnx"
    )
    result = onnxq.quantize_dynamic(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert list(result.plan.integer_nodes.values()) == ["MatMul"]
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32), "times": np.array(5)}
    expected = outputs(tmp_path / "in.onnx", feeds)
    assert sqnr(expected, outputs(tmp_path / "out.onnx", feeds)) > 25


@pytest.mark.slow
def test_a_sentence_encoder(minilm, tmp_path):
    config = QuantConfig(samples=2)
    result = onnxq.quantize_dynamic(minilm, tmp_path / "out.onnx", config)
    assert sum(op_type == "MatMul" for op_type in result.plan.integer_nodes.values()) == 36
    assert result.verdicts[0].counts == {"DynamicQuantizeMatMul": 18, "MatMulIntegerToFloat": 18}
    assert result.int8_bytes < 0.26 * result.float_bytes
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (2, 12))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    assert sqnr(outputs(minilm, feeds), outputs(tmp_path / "out.onnx", feeds)) > 14
