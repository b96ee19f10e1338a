"""The networks of scripts/bench_speed are what they are said to be."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import speed_models


@pytest.mark.parametrize(("make", "size"), [(speed_models.depthwise, 64), (speed_models.mobile, 96)])
def test_they_run(tmp_path, make, size):
    session = ort.InferenceSession(str(make(tmp_path / "m.onnx")), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": np.ones((2, 3, size, size), np.float32)})
    assert output.shape == (2, 10)
    assert np.isfinite(output).all()


def test_they_hold_what_makes_integers_lose(tmp_path):
    nodes = onnx.load(speed_models.mobile(tmp_path / "m.onnx")).graph.node
    assert {"HardSwish", "HardSigmoid", "Mul", "Add"} <= {node.op_type for node in nodes}
    groups = [a.i for n in nodes for a in n.attribute if n.op_type == "Conv" and a.name == "group"]
    assert sum(group > 1 for group in groups) == len(speed_models.MOBILE)


def test_they_are_always_the_same(tmp_path):
    one, other = (speed_models.depthwise(tmp_path / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert len(one) == len(other)
    assert onnx.load(tmp_path / "a.onnx").graph.node == onnx.load(tmp_path / "b.onnx").graph.node
