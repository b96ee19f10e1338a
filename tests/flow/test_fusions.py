"""ONNX Runtime fuses the float nodes of a quantized model as it fuses them in the float model."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import check, optimized, quantize
from graphs import parse

import onnxq
from calibrators.session import open_session
from onnxq.graph.nodes import all_nodes

FUSED = {
    *("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "LayerNormalization", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "EmbedLayerNormalization", "Attention"),
}
"""What ONNX Runtime makes of several float nodes, where none of these runs in integers."""

APART = {"SkipLayerNormalization": "LayerNormalization"}
"""The sum before it is written so that it stays apart, which is faster."""

CONSTANTS = """float[8, 8, 3, 3] w, float[8, 8, 3, 3] v, float root = {1.4142135}, float one = {1}, float half = {0.5},
float cubed = {0.044715}, float three = {3}, float two = {2}, float tanh_scale = {0.7978846},
float other = {0.035677407}, float eps = {0.00001}, float[16] g, float[16] s"""

FLOAT_REGIONS = {
    "gelu, half last": "d = Div (c, root) e = Erf (d) a = Add (e, one) m = Mul (c, a) n = Mul (m, half)",
    "gelu, half first": "d = Div (c, root) e = Erf (d) a = Add (e, one) h = Mul (c, half) n = Mul (h, a)",
    "gelu by tanh": """p = Pow (c, three) q = Mul (p, cubed) i = Add (c, q) k = Mul (i, tanh_scale) t = Tanh (k)
        a = Add (t, one) h = Mul (c, half) n = Mul (h, a)""",
    "silu": "e = Sigmoid (c) n = Mul (c, e)",
    "layer normalization": """m = ReduceMean <axes = [-1]> (c) d = Sub (c, m) p = Pow (d, two)
        l = ReduceMean <axes = [-1]> (p) k = Add (l, eps) r = Sqrt (k) q = Div (d, r) o = Mul (q, g) n = Add (o, s)""",
    "gelu and an integer reader": """d = Div (c, root) e = Erf (d) a = Add (e, one) m = Mul (c, a) u = Mul (m, half)
        b = Conv <pads = [1, 1, 1, 1]> (c, v) n = Add (u, b)""",
}


def fused(model: onnx.ModelProto | ir.Model) -> Counter[str]:
    nodes = model.graph.node if isinstance(model, onnx.ModelProto) else all_nodes(model)
    return Counter(APART.get(node.op_type, node.op_type) for node in nodes if node.op_type in FUSED)


@pytest.mark.parametrize("last", ["Conv <pads = [1, 1, 1, 1]> (n, v)", "MatMul (n, matrix)"])
@pytest.mark.parametrize("kind", FLOAT_REGIONS)
def test_float_nodes_are_fused_as_in_the_float_model(kind, last):
    model = parse(
        f"""g (float[N, 8, 16, 16] x) => (float[N, 8, 16, 16] y) <{CONSTANTS}, float[16, 16] matrix> {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w) {FLOAT_REGIONS[kind]} z = {last} y = Neg (z)
        }}""",
        s=np.zeros(16),
    )
    flow = quantize(model, exclude=["op:Sigmoid", "op:Mul"])
    check(flow, at_least=15)
    expected = fused(optimized(flow.model))
    assert expected
    assert fused(optimized(flow.int8)) == expected


WILD = Path(os.environ.get("WILD", "/nowhere")) / "cases"


@pytest.mark.parametrize("name", ["spindle-eeg", "rxnmapper", "tashkeel", "magika"])
def test_real_networks_are_fused_as_in_float(name, tmp_path):
    case = WILD / name
    if not case.is_dir():
        pytest.skip("no folder of real networks (WILD)")
    data = next(path for path in (case / "calib", case / "calib.npz") if path.exists())
    config = onnxq.QuantConfig(data=str(data), samples=4, correct=("none",), verify="off")
    onnxq.quantize_static(case / "model.onnx", tmp_path / "int8.onnx", config=config)
    counts = []
    for file in (case / "model.onnx", tmp_path / "int8.onnx"):
        open_session(file, threads=1, save_fused=tmp_path / "fused.onnx")
        counts.append(fused(onnx.load(tmp_path / "fused.onnx", load_external_data=False)))
    assert counts[1] == counts[0]
