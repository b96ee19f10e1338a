"""Any graph, and any choice of what is float: plans that hold together, models that run."""

import numpy as np
import pytest
from flow import quantize_for, run
from random_graphs import random_model

from calibrators.data.samples import Sample
from onnxq.algorithms.autotune import tuner
from onnxq.algorithms.autotune.derived_plan import derive_plan
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.core.config import QuantConfig
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.verify.accuracy import AccuracyEvaluator

CONFIG = QuantConfig(method="minmax", threads=1)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """What is found then is chance, as it should be here."""
    monkeypatch.setattr(tuner, "PROFILE_SECONDS", 0.0)
    monkeypatch.setattr(tuner, "RACE_SECONDS", 0.0)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_kept_float_the_model_runs(seed):
    flow = next(iter(quantize_for(["onnxruntime"], random_model(77_000 + seed, 12))))
    rng, names = np.random.default_rng(seed), sorted(flow.plan.integer_nodes)
    for share in (0.2, 0.5, 0.8):
        floats = {name for name in names if rng.random() < share}
        plan = derive_plan(flow.simple, flow.plan, CONFIG, floats)
        assert not floats & plan.integer_nodes.keys()
        for output in run(insert_qdq(flow.simple, plan), flow.feeds):
            assert np.isfinite(output).all()


@pytest.mark.parametrize("seed", range(6))
def test_any_graph_can_be_tuned(seed):
    flow = next(iter(quantize_for(["onnxruntime"], random_model(78_000 + seed, 12))))
    if not flow.plan.integer_nodes:
        return
    sample = Sample("s", flow.feeds)
    context = CorrectionContext([sample], AccuracyEvaluator(flow.model, [sample]), config=CONFIG)
    found = tuner.tune(Draft(flow.simple, flow.simple, flow.plan, {}), sample, context, tuner.EFFORTS["full"])
    assert found.floats.keys() <= flow.plan.integer_nodes.keys()
    assert all("in integers on this machine" in reason for reason in found.floats.values())
    assert found.contestants[0].floats == frozenset()
