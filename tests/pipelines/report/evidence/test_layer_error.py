"""Errors by layer: which tensors, in which order, how large, and that memory is bounded."""

import numpy as np
import pytest
from benches import bench_of
from cli import save_data, save_model
from graphs import parse, run

from onnxq.core.config import QuantConfig
from onnxq.graph.passes import simplify
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.pipelines.dynamic import quantize_dynamic
from onnxq.pipelines.report.evidence import layer_error
from onnxq.pipelines.report.evidence.layer_error import layer_errors

CPU = (("CPUExecutionProvider",), 1)

TEXT = """g (float[N,3,8,8] x) => (float[N,4] y) <float[8,3,3,3] w, float[8] b, float[8,4] v>
{ c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)
  y = MatMul(f, v) }"""


@pytest.fixture(scope="module")
def made():
    draft, context = bench_of(simplify(parse(TEXT)), (1, 3, 8, 8))
    return draft, insert_qdq(draft.reference, draft.plan), list(context.fit)[:3]


def measured(made):
    draft, quantized, batches = made
    return {e.tensor: e for e in layer_errors(draft.reference, quantized, draft.plan, batches, CPU)}


def test_quantized_tensors_and_outputs_of_quantized_nodes_in_graph_order(made):
    found = measured(made)
    assert next(iter(found)) == "x"
    assert list(found)[-1] == "y"
    assert "r" in found
    assert "c" not in found
    assert found["r"].node == next(n for n, op in made[0].plan.integer_nodes.items() if op == "Conv")
    assert found["r"].source == "x"
    assert found["r"].inherited == found["x"].sqnr
    assert found["y"].is_output
    assert not found["r"].is_output


def test_the_figures_are_those_of_both_models(made):
    draft, quantized, batches = made
    exact = np.concatenate([run(draft.reference, batch.feeds)[0] for batch in batches]).astype(np.float64)
    given = np.concatenate([run(quantized, batch.feeds)[0] for batch in batches]).astype(np.float64)
    expected = 10 * np.log10((exact**2).sum() / ((exact - given) ** 2).sum())
    assert measured(made)["y"].sqnr == pytest.approx(expected, abs=0.3)


def test_an_input_has_its_own_rounding_only(made):
    x = measured(made)["x"]
    assert x.sqnr == pytest.approx(x.rounding)
    assert x.node == ""
    assert x.inherited == np.inf


def test_parts_bound_memory_and_change_nothing(made, monkeypatch):
    whole = measured(made)
    opened = []
    open_session = layer_error.open_session
    monkeypatch.setattr(layer_error, "PART_BYTES", 1)
    monkeypatch.setattr(
        layer_error, "open_session", lambda *a, **k: opened.append(len(k["outputs"])) or open_session(*a, **k)
    )
    assert measured(made).keys() == whole.keys()
    assert len(opened) == 2 * len(whole)
    assert max(opened) <= 2


def test_channels_of_different_size_are_seen():
    weights = np.ones((8, 3, 3, 3), np.float32)
    weights[0] = 100.0
    draft, context = bench_of(simplify(parse(TEXT, w=weights)), (1, 3, 8, 8))
    quantized = insert_qdq(draft.reference, draft.plan)
    found = layer_errors(draft.reference, quantized, draft.plan, list(context.fit)[:2], CPU)
    assert next(e for e in found if e.tensor == "r").spread > 50


def test_what_is_cut_off_where_a_reader_is_flat_is_no_error():
    silu = """g (float[N,3,8,8] x) => (float[N,4] y) <float[8,3,3,3] w, float[8,4] v>
    { c = Conv<pads=[1,1,1,1]>(x, w)  s = Sigmoid(c)  m = Mul(c, s)  p = GlobalAveragePool(m)
      f = Flatten(p)  y = MatMul(f, v) }"""
    weights = np.random.default_rng(0).normal(0, 20, (8, 3, 3, 3)).astype(np.float32)
    draft, context = bench_of(simplify(parse(silu, w=weights)), (1, 3, 8, 8))
    assert any(group.flat for group in draft.plan.groups.values())
    quantized = insert_qdq(draft.reference, draft.plan)
    found = layer_errors(draft.reference, quantized, draft.plan, list(context.fit)[:2], CPU)
    assert next(e for e in found if e.tensor == "c").sqnr > 30


def test_a_dynamic_model_has_errors_at_the_outputs_of_its_nodes(tmp_path):
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    config = QuantConfig(mode="dynamic", include=("op:Conv",), correct=("none",), report=tmp_path / "r.html")
    made = quantize_dynamic(tmp_path / "m.onnx", tmp_path / "o.onnx", config, data=tmp_path / "d.npz")
    assert [each.tensor for each in made.evidence.layers] == ["c"]
    kinds = {op: kind for node in made.evidence.outline.nodes for _, op, kind in node.members}
    assert (kinds["Conv"], kinds["Relu"]) == ("int8", "float32")
