"""Targets of few bits keep their biases float, also from ONNX Runtime's optimizer, which would round them."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from calibrators.collect import collect
from calibrators.data.samples import Sample
from calibrators.methods import CALIBRATORS
from calibrators.session import open_session
from onnxq.calibration.qparams import compute_qparams, from_statistics
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.graph.passes import simplify
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

LAYERS = """g (float[N,4,8,8] x) => (float[N,4,8,8] y)
<float[4,4,1,1] v, float[4,4,1,1] w, float[4,4,1,1] u, float[4] b, float[4] c> {
    p = Conv(x, v, b) a = Relu(p) q = Conv(a, w, c) d = Relu(q) y = Conv(d, u)
}"""


@pytest.mark.parametrize(("name", "kept"), [("academic-w4a4", ["p", "q"]), ("tensorrt", [])])
def test_optimizations_change_nothing(tmp_path, name, kept):
    model = simplify(parse(LAYERS))
    for node in model.graph:
        node.name = node.outputs[0].name
    plan = make_plan(model, get_target(name), QuantConfig(target=name))
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)}
    statistics = collect(model, plan.observed, [Sample("all", feeds)])
    plan = compute_qparams(model, plan, from_statistics(statistics, CALIBRATORS["minmax"]))
    ir.save(insert_qdq(model, plan), tmp_path / "m.onnx")
    assert [point.consumer for point in plan.points if point.replicated_scale is not None] == kept
    plain, fast = (open_session(tmp_path / "m.onnx", optimize=o).run(None, feeds)[0] for o in (False, True))
    assert sqnr(plain, fast) > (60 if kept else 30)
