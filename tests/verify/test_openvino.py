"""What OpenVINO itself says, and that legality agrees with it. Skipped where it is not installed."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from graphs import parse
from qdq_models import INT32_BIAS, NO_Q, VALUES, conv, messages, named, subject

from onnxq.verify import legality, openvino

HERE = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="OpenVINO is not installed: pip install 'onnxq[openvino]'",
)

UNSIGNED_WEIGHTS = {"w": ("uint8[16,16,1,1] w", VALUES["w"] + 128), "o": ("uint8[16] o", 128)}
RIGHT = {
    "u8": [],
    "u8, an odd zero point": [{"z": ("uint8 z", 77)}],
    "an int32 bias": [INT32_BIAS, {"layer": "y = Conv (d, v, k)"}],
    "one scale": [{"weights": "v = DequantizeLinear (w, t, o)", "t": ("float t", 0.01), "o": ("int8 o", 0)}],
}
WRONG = {
    "unsigned weights": ([UNSIGNED_WEIGHTS], "its weights have a zero point"),
    "a wrong axis": (
        [{"weights": "v = DequantizeLinear <axis = 1> (w, t, o)"}],
        "the scales of its weights do not lie along its output channels",
    ),
    "16 bits": ([{"z": ("uint16 z", 128)}], "the runtime has an integer kernel only for 8 bits"),
    "a scale at run time": (
        [{"inputs": ", float s", "s": None}],
        "a scale or zero point is computed at run time",
    ),
}


@HERE
@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_integer_kernels_are_found(tmp_path, changes):
    one = subject(conv(NO_Q, *changes), "openvino", tmp_path / "m.onnx")
    for found in (legality.check(one), openvino.check(one)):
        assert (found.status, messages(found)) == ("passed", "")
    assert found.counts["integer layers"] == found.counts["layers"] == 1


@HERE
@pytest.mark.parametrize(("changes", "reason"), WRONG.values(), ids=WRONG)
def test_legality_agrees_with_openvino(tmp_path, changes, reason):
    opset = 21 if "uint16" in str(changes) else 13
    one = subject(conv(NO_Q, *changes, opset=opset), "openvino", tmp_path / "m.onnx")
    assert legality.check(one).status == "failed"
    found = openvino.check(one)
    assert found.counts["integer layers"] == 0
    assert f"n_y: its Conv runs in float on openvino: {reason}" in messages(found)


@HERE
@pytest.mark.parametrize(("kind", "zero", "integer"), [("int8", 0, True), ("uint8", 128, False)])
@pytest.mark.parametrize("body", ["ConvTranspose <strides = [2, 2]> (d, v)", "MatMul (d, e)"])
def test_operators_that_take_zero_point_0_only(tmp_path, kind, zero, integer, body):
    size = 16 if "Conv" in body else 8
    channels = 8 if "Conv" in body else 16
    text = f"""g (float[1,16,8,8] x, float[1,16,8,8] a) => (float[1,{channels},{size},{size}] y)
    <float s, {kind} z, int8[16,8,2,2] w, float t, int8 o> {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
        r = QuantizeLinear (a, s, z) e = DequantizeLinear (r, s, z) y = {body}
    }}"""
    model = named(parse(text, s=0.02, z=zero, w=np.arange(512).reshape(16, 8, 2, 2) % 100, t=0.01, o=0))
    one = subject(model, "openvino", tmp_path / "m.onnx")
    verdicts = legality.check(one), openvino.check(one)
    assert [v.status for v in verdicts] == ["passed" if integer else "failed"] * 2
    if not integer:
        assert "zero point" in messages(verdicts[1])


@HERE
def test_what_it_cannot_read_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    found = openvino.check(replace(subject(conv(), "openvino"), path=tmp_path / "m.onnx"))
    assert found.status == "failed"
    assert found.summary == "refuses the model"


def test_without_openvino_nothing_has_passed(monkeypatch):
    monkeypatch.setattr(openvino, "MODULE", "no_such_runtime")
    found = openvino.check(subject(conv(NO_Q), "openvino"))
    assert found.status == "not checked"
    assert "pip install" in found.summary
