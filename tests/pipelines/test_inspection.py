"""`onnxq inspect`: the outline of a plan, and of a model that has Q/DQ; how it is folded and shown."""

import io
import json

import numpy as np
import onnx_ir as ir
import pytest
from cli import save_model
from graphs import parse
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from onnxq.cli.commands import main
from onnxq.cli.tables.tree import counts, folded, tree
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.pipelines.inspection import inspect

MIXED = """g (float[N,4,8,8] x) => (float[N,4,8,8] y)
<float[4,4,1,1] w, float[4,4,1,1] v, float[4,4,1,1] u>
{ a = Conv(x, w)  r = Relu(a)  b = Conv(r, v)  h = Elu(b)  c = Conv(h, u)  d = Relu(c)  y = Tanh(d) }"""


@pytest.fixture
def model(tmp_path):
    ir.save(parse(MIXED, opset=17), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def told(found):
    return [(group.runs, " ".join(group.operators), group.told) for group in found.groups]


def test_what_is_fused_stands_in_one_group(model):
    found = inspect(model, QuantConfig())
    assert told(found) == [
        ("integers", "Conv Relu", "uint8 x int8 per channel"),
        ("integers", "Conv", "uint8 x int8 per channel"),
        ("float", "Elu", "target onnxruntime has no integer kernel for Elu"),
        ("integers", "Conv Relu", "uint8 x int8 per channel"),
        ("float", "Tanh", "target onnxruntime has no integer kernel for Tanh"),
    ]
    assert [(runs, len(groups)) for runs, groups in found.regions] == [
        *(("integers", 2), ("float", 1), ("integers", 1), ("float", 1)),
    ]
    assert counts(found) == "fused groups: 3 in integers, 2 in float"


def test_options_change_the_plan(model):
    found = inspect(model, QuantConfig(exclude=("Conv_b",), per_tensor=True))
    assert ("float", "Conv", "excluded by 'Conv_b'") in told(found)
    assert ("integers", "Conv Relu", "uint8 x int8") in told(found)


def test_what_runs_as_its_neighbours(tmp_path):
    text = """g (float[N,4,8,8] x) => (float[N,4,4,4] y) <float[4,4,1,1] w, float[4,4,1,1] v>
    { a = Conv(x, w)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)  y = Conv(p, v) }"""
    found = inspect(save_model(tmp_path / "m.onnx", text), QuantConfig(target="tensorrt"))
    assert ("neighbours", "MaxPool", "") in told(found)
    assert counts(found).endswith(", 0 in float, 1 in the type of their neighbours")


def test_bodies_of_control_flow_are_told_of(tmp_path):
    text = """g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w, float[4,4] v> {
      a = MatMul(x, w)
      y = If (c) <then_branch = t () => (float[N,4] s) { s = MatMul(a, v) },
                  else_branch = e () => (float[N,4] n) { n = Neg(a) }>
    }"""
    found = inspect(save_model(tmp_path / "m.onnx", text), QuantConfig())
    (inside,) = (
        group for group in found.groups if "control-flow" in group.told and group.operators == ("MatMul",)
    )
    assert inside.runs == "float"


# --- models that have Q/DQ ------------------------------------------------------------------------


@pytest.fixture
def quantized(model, tmp_path):
    output = tmp_path / "q.onnx"
    assert (
        main(["quantize", str(model), str(output), "--exclude", "Conv_b", "--quiet", "--samples", "2"]) == 0
    )
    return output


def test_what_is_quantized_already(quantized):
    found = inspect(quantized, QuantConfig())
    assert found.plan is None
    assert told(found)[:3] == [
        ("integers", "Conv Relu", "uint8 x int8 per channel"),
        ("float", "Conv", "no DequantizeLinear before its weights"),
        ("float", "Elu", "it reads no integers"),
    ]
    assert found.title.endswith("q.onnx, quantized already")


FUSED = {
    "Relu after Conv": """{ a = Conv(x, w)  r = Relu(a)  y = Conv(r, v) }""",
    "Relu6": """{ a = Conv(x, w)  r = Clip(a, zero, six)  y = Conv(r, v) }""",
    "Relu twice": """{ a = Conv(x, w)  r = Relu(a)  s = Clip(r, zero, six)  y = Conv(s, v) }""",
    "residual": """{ a = Conv(x, w)  r = Relu(a)  b = Conv(r, v)  s = Add(b, r)  t = Relu(s)  y = Conv(t, u) }""",
    "residual, turned": """{ a = Conv(x, w)  b = Conv(a, v)  s = Add(a, b)  t = Relu(s)  y = Conv(t, u) }""",
    "own activation": """{ a = Conv(x, w)  r = LeakyRelu(a)  y = Conv(r, v) }""",
}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino"])
@pytest.mark.parametrize("graph", FUSED)
def test_a_written_model_is_told_as_its_plan(tmp_path, graph, target):
    """What the plan has in integers does not turn float in the outline of the file."""
    head = """g (float[N,4,8,8] x) => (float[N,4,8,8] y)
    <float[4,4,1,1] w, float[4,4,1,1] v, float[4,4,1,1] u, float zero = {0.0}, float six = {6.0}> """
    save_model(tmp_path / "m.onnx", head + FUSED[graph])
    options = ["--target", target, "--verify", "off", "--quiet", "--samples", "2", "--float-type", "float32"]
    assert main(["quantize", str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), *options]) == 0
    plan, file = (inspect(tmp_path / name, QuantConfig(target=target)) for name in ("m.onnx", "q.onnx"))
    assert [said[:2] for said in told(file)] == [said[:2] for said in told(plan)]


def test_what_is_quantized_otherwise(tmp_path):
    text = """g (uint8[N,4] x) => (int32[N,4] y) <uint8[4,4] w> { y = MatMulInteger(x, w) }"""
    ir.save(parse(text, w=np.ones((4, 4), np.uint8)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="quantized in another way than with QuantizeLinear"):
        inspect(tmp_path / "m.onnx", QuantConfig())


# --- folding --------------------------------------------------------------------------------------


def unfolded(found):
    return [item for repeated in found for item in repeated.items * repeated.times]


@given(st.lists(st.integers(0, 2), max_size=40))
def test_folding_loses_nothing(items):
    found = folded(items, lambda item: item)
    assert unfolded(found) == items
    assert sum(len(repeated.items) for repeated in found) <= len(items)


def test_the_shortest_pattern_that_says_most():
    found = folded(list("xababababy"), str)
    assert [(repeated.times, "".join(repeated.items)) for repeated in found] == [
        (1, "x"),
        (4, "ab"),
        (1, "y"),
    ]
    assert [(r.times, r.items) for r in folded("aaaa", str)] == [(4, ("a",))]


def test_things_that_look_alike_are_the_same():
    found = folded(["a1", "b1", "a2", "b2"], lambda name: name[0])
    assert [(repeated.times, repeated.items) for repeated in found] == [(2, ("a1", "b1"))]


# --- shown ----------------------------------------------------------------------------------------


def shown(found, **options):
    console = Console(width=200, record=True, force_terminal=True, file=io.StringIO())
    console.print(tree(found, **options))
    return console.export_text(styles=True)


def test_colours(model):
    text = shown(inspect(model, QuantConfig()))
    assert "\x1b[1;32mintegers" in text
    assert "\x1b[32mConv + Relu" in text
    assert "\x1b[1;33mfloat" in text
    assert "\x1b[33mElu" in text


CHAIN = """g (float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,4,1,1] w>
{ a = Conv(x, w)  b = Relu(a)  c = Conv(b, w)  d = Relu(c)  e = Conv(d, w)  f = Relu(e)  y = Tanh(f) }"""


def test_repetitions_are_told_once_unless_asked_for(tmp_path, capsys):
    path = str(save_model(tmp_path / "m.onnx", CHAIN))
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "3 times, the first of them:" in out
    assert out.count("Conv + Relu") == 1
    assert main(["inspect", path, "--verbose"]) == 0
    out = capsys.readouterr().out
    assert out.count("Conv + Relu") == 3
    assert "times" not in out
    assert main(["quantize", path, "o.onnx", "--dry-run"]) == 0
    assert capsys.readouterr().out == out


def test_json_has_the_groups_too(model, capsys):
    assert main(["inspect", str(model), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    first = content["groups"][0]
    assert (first["runs"], first["told"]) == ("integers", "uint8 x int8 per channel")
    assert first["nodes"] == [
        {"name": "Conv_a", "op_type": "Conv"},
        {"name": "Relu_r", "op_type": "Relu"},
    ]
    assert {"target", "integer_nodes", "float_nodes", "points"} < content.keys()


def test_json_of_what_is_quantized_already(quantized, capsys):
    assert main(["inspect", str(quantized), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"groups"}
