"""Results as plain data: JSON holds them all, and a notebook shows their main figures."""

import json
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from cli import save_data, save_model

from onnxq.core.config import QuantConfig
from onnxq.pipelines.report.plain import plain
from onnxq.pipelines.static import quantize_static


@dataclass
class Pair:
    one: float
    two: object


def test_every_kind_of_value_becomes_plain():
    given = {
        "numbers": (float("nan"), np.float32(0.5), np.int64(3), float("inf"), True),
        "type": ir.DataType.INT8,
        "path": Path("a/b"),
        "set": frozenset(("b", "a")),
        ("y", 1, 2): Pair(1.0, [None, np.zeros(2)]),
    }
    assert json.loads(json.dumps(plain(given))) == {
        "numbers": [None, 0.5, 3, None, True],
        "type": "int8",
        "path": "a/b",
        "set": ["a", "b"],
        "y 1 2": {"one": 1.0, "two": [None, [0.0, 0.0]]},
    }
    with pytest.raises(TypeError, match="object has no plain form"):
        plain(object())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    save_model(folder / "<b>m.onnx")
    save_data(folder / "d.npz")
    config = QuantConfig(goal="sqnr>=20", report=folder / "r.html", threads=1)
    return quantize_static(folder / "<b>m.onnx", folder / "<b>o.onnx", folder / "d.npz", config)


def test_a_result_as_data(result):
    data = json.loads(json.dumps(result.to_dict()))
    assert data["quality"]["sqnr"] == pytest.approx(result.quality.sqnr)
    assert list(data["quality"]["outputs"]) == ["y"]
    assert next(node["op_type"] for node in data["plan"]["integer_nodes"]) == "Conv"
    assert data["bytes"]["quantized"] == result.int8_bytes
    assert data["goal"]["goal"] == "sqnr>=20"
    assert data["options"]["goal"] == "sqnr>=20"
    assert [layer["tensor"] for layer in data["layers"]][-1] == "y"
    assert data["kernel_times"]["operators"]


def test_a_notebook_shows_the_main_figures_and_escapes_names(result):
    shown = result._repr_html_()
    assert "&lt;b&gt;o.onnx" in shown
    assert "<b>" not in shown
    assert f"{result.quality.sqnr:.2f} dB" in shown
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed(shown)
    assert {"size", "target", "in integers"} <= set(texts)
