"""The sizes of tensors before a run, and how many runs fit into memory."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from calibrators.session import open_session
from onnxq.graph import tensor_bytes as module
from onnxq.graph.tensor_bytes import side_by_side, tensor_bytes


def network() -> ir.Model:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N,4] x, float[M] z) => (float[N,4] y, int64[K] k)
    {
        a = Relu (x)
        h = Cast <to = 10> (a)
        b = Cast <to = 1> (h)
        y = Sigmoid (b)
        k0 = NonZero (z)
        shape = Constant <value_ints = [-1]> ()
        k = Reshape (k0, shape)
    }"""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


FEEDS = {"x": np.zeros((5, 4), np.float32), "z": np.zeros(3, np.float32)}


def test_named_axes_have_the_sizes_of_the_inputs():
    found = tensor_bytes(network(), ["x", "a", "h", "y", "k0", "other"], FEEDS)
    assert found == {"x": 80, "a": 80, "h": 40, "y": 80}
    session = open_session(network(), outputs=["a", "h"])
    arrays = dict(zip(["a", "h"], session.run(["a", "h"], dict(FEEDS)), strict=True))
    assert {name: array.nbytes for name, array in arrays.items()} == {name: found[name] for name in arrays}


@pytest.mark.parametrize("feeds", [{}, {"x": np.zeros(3, np.float32)}])
def test_axes_that_no_input_tells_are_unknown(feeds):
    assert tensor_bytes(network(), ["a", "h"], feeds) == {}
    assert side_by_side(network(), feeds, 7) == 7


@pytest.mark.parametrize(("limit", "number"), [(10**9, 4), (900, 3), (600, 2), (1, 1)])
def test_as_many_runs_as_fit_into_memory(limit, number, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", limit)  # a, h, b, y and the constant take 288 bytes
    assert side_by_side(network(), FEEDS, 4) == number
