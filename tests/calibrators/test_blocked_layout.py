"""Tensors in ONNX Runtime's layout of blocks of channels hold the same values, in another order."""

from __future__ import annotations

import platform

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from calibrators import blocked_layout
from calibrators.blocked_layout import open_unordered
from calibrators.collect import collect
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import open_session

TENSORS = ("x", "a", "b", "c", "d", "e", "y")
"""Channels: 3, 32, 32, 24 (padded in blocks of 16), 32, 32; the last one is a vector."""

on_x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="no blocks")


def network() -> ir.Model:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N,3,24,20] x) => (float[N,32,1,1] y)
    {
        a = Conv <pads = [1,1,1,1]> (x, first)
        b = Relu (a)
        c = Conv (b, narrow)
        d = Conv (c, wide)
        e = Add (d, b)
        y = GlobalAveragePool (e)
    }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {"first": (32, 3, 3, 3), "narrow": (24, 32, 1, 1), "wide": (32, 24, 1, 1)}
    for name, shape in shapes.items():
        weight = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return ir.from_proto(proto)


def picture(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, 3, 24, 20)).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 3])
def test_each_sample_has_the_same_values(samples):
    feeds = {"x": picture(samples)}
    plain = open_session(network(), outputs=TENSORS).run(TENSORS, feeds)
    found = open_unordered(network(), TENSORS, (), 1).run(TENSORS, feeds)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.shape == theirs.shape
        rows = (np.sort(each.reshape(samples, -1)) for each in (ours, theirs))
        np.testing.assert_allclose(*rows, rtol=1e-5, atol=1e-5)


@on_x86
def test_copies_are_left_out_where_no_order_is_asked_for():
    feeds = {"x": picture(1)}
    plain = dict(zip(TENSORS, open_session(network(), outputs=TENSORS).run(TENSORS, feeds), strict=True))
    found = dict(zip(TENSORS, open_unordered(network(), TENSORS, ("d",), 1).run(TENSORS, feeds), strict=True))
    moved = {name for name in TENSORS if not np.allclose(found[name], plain[name], atol=1e-5)}
    assert {"a", "b"} <= moved <= {"a", "b", "e"}


def test_a_model_that_cannot_be_written_twice_is_opened_as_it_is(monkeypatch):
    monkeypatch.setattr(blocked_layout, "read_model", refuse)
    feeds = {"x": picture(1)}
    (plain,) = open_session(network(), outputs=("a",)).run(("a",), feeds)
    (found,) = open_unordered(network(), ("a",), (), 1).run(("a",), feeds)
    np.testing.assert_allclose(found, plain, atol=1e-5)


def refuse(*_: object) -> None:
    raise CalibrationError("no")


def test_an_unknown_tensor_is_named():
    with pytest.raises(CalibrationError, match="no tensor called nothing"):
        open_unordered(network(), ("nothing",), (), 1)


def test_channel_means_keep_the_order():
    feeds = picture(2)
    found = collect(network(), TENSORS, [Sample("s", {"x": feeds}, 2)], channels={"a": 1})
    (a,) = open_session(network(), outputs=("a",)).run(("a",), {"x": feeds})
    np.testing.assert_allclose(found["a"].channels.value, a.mean(axis=(0, 2, 3)), atol=1e-4)
