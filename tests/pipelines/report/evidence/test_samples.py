"""Samples with other decisions, their pictures, the graph's outline, the values of weights."""

import base64
import io

import numpy as np
import onnx_ir as ir
import pytest
from benches import bench_of
from graphs import parse
from PIL import Image

from calibrators.data.samples import Sample
from onnxq.core.plan import Group, QuantParams, QuantPlan, QuantSpec
from onnxq.graph.passes import simplify
from onnxq.graph.passes.shapes import InferShapesPass
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.pipelines.report.evidence import outline as outlines
from onnxq.pipelines.report.evidence.outline import CARRIED, outline
from onnxq.pipelines.report.evidence.pictures import thumbnail
from onnxq.pipelines.report.evidence.sample_outcomes import sample_outcomes
from onnxq.pipelines.report.evidence.weight_values import COLUMNS, weight_values
from onnxq.verify.accuracy import AccuracyEvaluator

PLAIN = "g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }"
TURNED = "g (float[N,4] x) => (float[N,4] y) <float[4] k> { y = Add(x, k) }"
LAYERS = """g (float[N,3,8,8] x) => (float[N,4] y) <float[8,3,3,3] w, float[8] b, float[8,4] v>
{ c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  p = GlobalAveragePool(r)  s = Shape(p)  f = Flatten(p)
  y = MatMul(f, v) }"""


def test_changed_decisions_are_named_those_that_float_is_surest_of_first():
    rows = np.eye(4, dtype=np.float32)[[0, 1, 2]] * np.array([[1.0], [1.0], [5.0]], np.float32)
    rows[1, 3] = 0.9  # close to the class that wins when 0.5 is added to it
    batches = [Sample("a", {"x": rows[:2]}, 2, members=("first", "second")), Sample("b", {"x": rows[2:]})]
    changed = parse(TURNED, k=np.array([0, 0, 0, 0.5], np.float32))
    found = sample_outcomes(AccuracyEvaluator(parse(PLAIN), batches), changed)
    assert (found.count, found.decisions) == (3, 3)
    assert found.changes == {("y", 1, 3): 1}
    (one,) = found.changed
    assert one.name == "second"
    assert one.changed[0].margin == pytest.approx(0.1)
    assert [each.name for each in found.worst] == sorted(
        ("first", "second", "b"), key=lambda name: next(w.sqnr for w in found.worst if w.name == name)
    )


def test_a_picture_becomes_a_thumbnail_whatever_its_layout():
    pixels = np.zeros((1, 3, 100, 200), np.float32)
    pixels[:, 0] = 1.0
    for array in (pixels, pixels.transpose(0, 2, 3, 1)):
        uri = thumbnail(Sample("s", {"x": array}), 0)
        picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
        assert picture.size == (72, 36)
        assert picture.getpixel((30, 20))[0] > 200 > picture.getpixel((30, 20))[2]
    assert thumbnail(Sample("s", {"ids": np.zeros((1, 16), np.int64)}), 0) == ""
    assert thumbnail(Sample("s", {"x": np.full((1, 3, 32, 32), np.nan, np.float32)}), 0) == ""


def test_nodes_have_the_type_that_they_run_in():
    draft, _ = bench_of(simplify(parse(LAYERS)), (1, 3, 8, 8))
    found = outline(draft.reference, draft.plan, None)
    kinds = {op: kind for node in found.nodes for _, op, kind in node.members}
    assert kinds["Conv"] == kinds["Relu"] == kinds["MatMul"] == "int8"
    assert kinds["Flatten"] in ("int8", CARRIED)
    assert not found.grouped
    conv, relu = found.nodes[0], found.nodes[1]
    assert conv.label == "Conv"
    assert relu.reads == (0,)


@pytest.mark.parametrize("pattern", ["block{}/part{}/node", "n{}_{}"])
def test_a_large_graph_is_drawn_in_groups(monkeypatch, pattern):
    monkeypatch.setattr(outlines, "MOST_DRAWN", 20)
    monkeypatch.setattr(outlines, "MOST_GROUPS", 10)
    body = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(40))
    model = parse(f"g (float[N,4] v0) => (float[N,4] v40) {{ {body} }}")
    for i, node in enumerate(model.graph):
        node.name = pattern.format(i // 8, i)
    found = outline(model, QuantPlan("onnxruntime", (), (), {}, {}, {}), None)
    assert found.grouped
    assert found.count == 40
    assert 2 <= len(found.nodes) <= 10
    assert sum(len(node.members) for node in found.nodes) == 40
    assert {len(node.reads) for node in found.nodes[1:]} == {1}
    assert all(kind == "float32" for node in found.nodes for _, _, kind in node.members)


def test_what_is_clipped_of_weights():
    spec = QuantSpec(ir.DataType.INT8, symmetric=True, axis=0, narrow_range=True)
    model = parse(
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w> { y = MatMul(x, w) }",
        w=np.array([[1.0, 2.0], [-10.0, 10.0]], np.float32),
    )
    scale = np.array([1.0, 10.0], np.float32) / 127
    plan = QuantPlan(
        "onnxruntime",
        (),
        (),
        {"w": Group("w", spec, ("w",), (), constant=True)},
        {},
        {},
        {"w": QuantParams(scale, np.zeros(2, np.int8))},
    )
    found = weight_values(model, plan)["w"]
    assert (found.low, found.high, found.clipped) == (-10.0, 10.0, 0.25)
    assert found.counts.sum() == 4
    assert found.counts[-1] == 1
    assert len(found.counts) == COLUMNS


def test_a_model_with_qdq_gives_times_by_operator():
    from onnxq.pipelines.report.evidence.kernel_times import kernel_times

    draft, context = bench_of(simplify(parse(LAYERS)), (1, 3, 8, 8))
    found = kernel_times(draft.reference, insert_qdq(draft.reference, draft.plan), next(iter(context.fit)), 1)
    kinds = {one.op_type: one for one in found.operators}
    assert any("Conv" in name and one.kernels_before == 1 for name, one in kinds.items())
    assert any(name.startswith("QLinear") and one.kernels_after for name, one in kinds.items())
    conv = next(node for node in found.nodes if node.op_type == "Conv")
    assert conv.fused >= 1


def test_nodes_without_float_numbers_are_left_out():
    text = """g (float[N,3,8,8] x) => (float[N,24,8] y) <int64[3] k = {0, 24, 8}>
    { r = Relu(x)  s = Shape(x)  c = Concat<axis=0>(s, k)  y = Reshape(r, k) }"""
    model = parse(text)
    InferShapesPass()(model)
    found = outline(model, QuantPlan("onnxruntime", (), (), {}, {}, {}), None)
    assert [node.label for node in found.nodes] == ["Relu", "Reshape"]
    assert found.hidden == 2
