"""`onnxq requantize`: what it prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cli import save_data, save_model

from onnxq.cli import commands

SCALES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4] x) => (float[N,3] y) <float s = {%s}, %s z = {0}, float[4,3] w>
{ q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, w) }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a float model, one with Q/DQ made of it, and data."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    assert run("quantize", "m.onnx", "q.onnx", "--data", "d.npz", "--target", "tensorrt", "--quiet") == 0
    return tmp_path


def run(*arguments: str) -> int:
    if arguments[0] in ("quantize", "requantize"):
        arguments = (*arguments, "--verify", "off")
    return commands.main(arguments)


def test_it_completes_a_model_and_tells_of_it(folder, capsys):
    options = ("--target", "onnxruntime", "--data", "d.npz", "--report", "r.html")
    assert run("requantize", "q.onnx", "o.onnx", *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("1 of 1 Conv", " kept, ", " calibrated", "of the given model", "legality: passed", "SQNR"):
        assert part in out
    assert "correction" not in out
    assert {i.data_type for i in onnx.load("o.onnx").graph.initializer} >= {onnx.TensorProto.INT32}
    assert "<html" in Path("r.html").read_text(encoding="utf-8")
    assert run("verify", "o.onnx", "--target", "onnxruntime", "--quiet") == 0


def test_quiet_prints_nothing_and_help_explains(folder, capsys):
    assert run("requantize", "q.onnx", "o.onnx", "--target", "tensorrt", "--data", "d.npz", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert commands.main(["requantize", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "--target" in help_text
    assert "--goal" not in help_text


def test_without_data_the_accuracy_is_unknown(folder, capsys):
    assert run("requantize", "q.onnx", "o.onnx", "--target", "tensorrt") == 0
    assert "NO DATA" in capsys.readouterr().out + capsys.readouterr().err


def broken(scale: str, kind: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(SCALES % (scale, kind))
    weight = np.ones((4, 3), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("m.onnx", 1, "has no QuantizeLinear and DequantizeLinear"),
        ("missing.onnx", 1, "missing.onnx"),
        ("data.onnx", 1, "data.onnx"),
        ("negative.onnx", 1, "scale"),
        ("nan.onnx", 1, "scale"),
        ("short.onnx", 1, "scales of shape [2] do not fit"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(folder, capsys, source, code, message):
    Path("data.onnx").write_bytes(b"no model")
    onnx.save(broken("-0.1", "int8"), "negative.onnx")
    onnx.save(broken("nan", "int8"), "nan.onnx")
    onnx.save(_short(), "short.onnx")
    assert run("requantize", source, "o.onnx", "--target", "tensorrt") == code
    err = capsys.readouterr().err
    assert message in err
    assert "bug" not in err
    assert len(err.splitlines()) == 1
    assert not Path("o.onnx").exists()


def _short() -> onnx.ModelProto:
    """The weights have 3 channels, their scales 2."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,4] x) => (float[N,3] y)
    <int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[2] s = {0.1, 0.2}, int8[2] z = {0, 0}>
    { d = DequantizeLinear <axis = 1> (w, s, z)  y = MatMul(x, d) }
    """
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize("options", [("--goal", "sqnr>=3"), ("--target", "abacus"), ("--mode", "dynamic")])
def test_wrong_usage(folder, capsys, options):
    assert run("requantize", "q.onnx", "o.onnx", *options) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not Path("o.onnx").exists()
