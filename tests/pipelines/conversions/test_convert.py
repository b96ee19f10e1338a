"""`onnxq convert`: another float type, without quantization."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli import save_data, save_model
from graphs import op_counts, parse

import onnxq
from onnxq.cli.commands import main
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, ModelError
from onnxq.graph.files import load
from onnxq.pipelines.conversions.convert import EXCLUDED, convert

NETWORK = """g (float[N, 3, 8, 8] x) => (float[N, 4] y)
<float[4, 3, 3, 3] w, float[4] b, float[4, 4] v>
{ c = Conv(x, w, b)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)  y = MatMul(f, v) }"""


def saved(path, text=NETWORK, opset=17, **given):
    ir.save(parse(text, opset=opset, **given), path)
    return path


def samples(count=4):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def float_types(path):
    return {
        value.dtype for value in load(path).graph.initializers.values() if value.dtype.is_floating_point()
    }


@pytest.mark.parametrize(("name", "least"), [("float16", 50), ("bfloat16", 30)])
def test_a_model_is_converted_and_compared(tmp_path, name, least):
    out = tmp_path / "out.onnx"
    result = convert(saved(tmp_path / "m.onnx"), out, samples(), QuantConfig(float_type=name))
    assert float_types(out) == {ir.DataType[name.upper()]}
    assert result.quality.sqnr > least
    assert (result.casts, dict(result.float32), result.warnings) == (2, {}, ())
    assert result.narrowed["Conv"] == 1
    assert result.after == out.stat().st_size < result.before
    assert load(out).graph.inputs[0].dtype == ir.DataType.FLOAT


def test_inputs_and_outputs_may_change_too(tmp_path):
    out = tmp_path / "out.onnx"
    result = convert(saved(tmp_path / "m.onnx"), out, samples(), QuantConfig(io_types="float"))
    values = (*load(out).graph.inputs, *load(out).graph.outputs)
    assert {value.dtype for value in values} == {ir.DataType.FLOAT16}
    assert result.casts == 0
    assert result.quality.sqnr > 50


@pytest.mark.parametrize("io", ["keep", "float"])
def test_there_and_back(tmp_path, io):
    half, full = tmp_path / "half.onnx", tmp_path / "full.onnx"
    convert(saved(tmp_path / "m.onnx"), half, samples(), QuantConfig(io_types=io))
    result = convert(half, full, samples(), QuantConfig(float_type="float32", io_types=io))
    assert float_types(full) == {ir.DataType.FLOAT}
    assert op_counts(load(full)) == op_counts(load(tmp_path / "m.onnx"))
    assert result.quality.sqnr > 50


def test_a_model_in_half_precision_is_converted_to_the_other(tmp_path):
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    convert(saved(tmp_path / "m.onnx"), one, samples(), QuantConfig(float_type="bfloat16"))
    result = convert(one, other, samples(), QuantConfig(float_type="float16"))
    assert float_types(other) == {ir.DataType.FLOAT16}
    assert result.quality.sqnr > 30


def test_double_becomes_float16(tmp_path):
    text = "g (double[N, 4] x) => (double[N, 3] y) <double[4, 3] w> { h = MatMul(x, w)  y = Relu(h) }"
    result = convert(saved(tmp_path / "m.onnx", text), tmp_path / "o.onnx", None, QuantConfig())
    assert float_types(tmp_path / "o.onnx") == {ir.DataType.FLOAT16}
    assert result.quality.sqnr > 50


def test_excluded_nodes_stay(tmp_path):
    config = QuantConfig(exclude=("op:Conv",))
    result = convert(saved(tmp_path / "m.onnx"), tmp_path / "o.onnx", samples(), config)
    assert EXCLUDED in result.float32.values()
    assert "Conv" not in result.narrowed


def test_without_data_that_is_said(tmp_path):
    text = "g (float[N, 8] x) => (float[N, 8] y) { e = Exp(x)  l = Log(e)  n = Neg(l)  y = Relu(n) }"
    result = convert(saved(tmp_path / "m.onnx", text), tmp_path / "o.onnx")
    assert "NO DATA" in result.warnings[0]
    assert list(result.narrowed) == ["Relu"]


def test_integers_stay_in_a_quantized_model(tmp_path):
    text = """g (float[N, 4] x) => (float[N, 3] y) <float s, int8 z = {0}, int8[4, 3] w, float t, int8 u = {0}>
    { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  e = DequantizeLinear(w, t, u)  y = MatMul(d, e) }"""
    path, out = saved(tmp_path / "m.onnx", text, 13, s=0.05, t=0.01), tmp_path / "o.onnx"
    result = convert(path, out, [{"x": np.ones((1, 4), np.float32)}])
    assert load(out).graph.opset_imports[""] >= 19
    assert any(
        v.dtype == ir.DataType.INT8 and v.shape.numpy() == (4, 3)
        for v in load(out).graph.initializers.values()
    )
    assert result.quality.sqnr > 50


def test_keep_is_no_conversion(tmp_path):
    with pytest.raises(ConfigError, match="does nothing"):
        convert(saved(tmp_path / "m.onnx"), tmp_path / "o.onnx", None, QuantConfig(float_type="keep"))


@pytest.mark.parametrize(
    "option", [{"weight": "int4"}, {"method": "minmax"}, {"target": "qnn"}, {"strict": True}]
)
def test_options_of_quantization_are_refused(tmp_path, option):
    with pytest.raises(ConfigError, match=f"takes no {next(iter(option))}"):
        convert(saved(tmp_path / "m.onnx"), tmp_path / "o.onnx", None, QuantConfig(**option))
    assert not (tmp_path / "o.onnx").exists()


def test_bfloat16_keeps_numbers_that_float16_does_not_hold(tmp_path):
    text = "g (float[N, 4] x) => (float[N, 4] y) <float w> { c = Clip(x, , w)  y = Neg(c) }"
    path, out = saved(tmp_path / "m.onnx", text, w=1e30), tmp_path / "o.onnx"
    data = [{"x": np.ones((1, 4), np.float32)}]
    for name, largest in (("bfloat16", 1e30), ("float16", 65504)):
        convert(path, out, data, QuantConfig(float_type=name))
        (limit,) = [value.const_value.numpy() for value in load(out).graph.initializers.values()]
        assert float(limit) == pytest.approx(largest, rel=1e-2)


def test_a_model_is_not_overwritten(tmp_path):
    path = saved(tmp_path / "m.onnx")
    before = path.read_bytes()
    with pytest.raises(ModelError, match="would overwrite"):
        convert(path, path)
    assert path.read_bytes() == before


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    assert main(["convert", "m.onnx", "o.onnx", "--data", "d.npz"]) == 0
    shown = capsys.readouterr().out
    assert "float16" in shown
    assert "SQNR" in shown
    onnx.checker.check_model("o.onnx", full_check=True)


@pytest.mark.parametrize("arguments", [["--weight", "int8"], ["--float-type", "float8"]])
def test_wrong_options_are_refused(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx")
    assert main(["convert", "m.onnx", "o.onnx", *arguments]) == 2
    assert not (tmp_path / "o.onnx").exists()


def test_nothing_is_said_but_warnings_if_quiet(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    with caplog.at_level(logging.WARNING):
        assert main(["convert", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet"]) == 0
    assert not capsys.readouterr().out


def test_a_model_in_memory_is_converted(tmp_path):
    result = onnxq.convert(parse(NETWORK, opset=17), tmp_path / "out.onnx", samples())
    assert float_types(tmp_path / "out.onnx") == {ir.DataType.FLOAT16}
    assert isinstance(result, onnxq.Converted)
