"""The figures of the comparisons, on cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import bench

FLOAT = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[1,8] x) => (float[1,8] y)
<float[8,8] w = {WEIGHT}>
{ y = MatMul(x, w) }
"""

INT8 = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[1,8] x) => (float[1,8] y)
<float s = {0.1}, uint8 z = {128}, int8[8,8] w = {WEIGHT}, int8 wz = {0}>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear(w, s, wz)
    y = MatMul(d, v)
}
"""


def saved(text: str, path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(text.replace("WEIGHT", ", ".join(["1"] * 64))), path)
    return path


def test_kernels_tell_integers_from_float(tmp_path: Path) -> None:
    assert bench.kernels(saved(FLOAT, tmp_path / "float.onnx")) == (0, 0, 1)
    assert bench.kernels(saved(INT8, tmp_path / "int8.onnx")) == (1, 1, 0)


def test_outputs_are_joined_along_the_samples(tmp_path: Path) -> None:
    model = saved(FLOAT, tmp_path / "float.onnx")
    samples = [{"x": np.full((1, 8), value, np.float32)} for value in (1, 2, 3)]
    assert bench.outputs(model, samples)[:, 0].tolist() == [8, 16, 24]


def test_agreement_and_accuracy_count_the_largest_entry() -> None:
    first, second = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]
    assert bench.agreement(first, second) == 75
    assert bench.accuracy(second, np.array([0, 2, 2, 0])) == 75


@pytest.mark.parametrize(("figure", "met"), [
    (bench.at_least("a", 2, 2), True),
    (bench.at_least("a", 1.99, 2), False),
    (bench.at_most("a", 2.01, 2), False),
    (bench.Figure("a", 1), True),
])  # fmt: skip
def test_a_missed_goal_fails_the_report(
    figure: bench.Figure, met: bool, capsys: pytest.CaptureFixture
) -> None:
    assert bench.report("title", [bench.Figure("other", 1), figure]) is met
    assert ("MISSED" in capsys.readouterr().out) is not met
