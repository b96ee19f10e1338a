"""Any graph: what comes out is valid, close to float, and the same whether the runtime fuses it or not."""

import numpy as np
import pytest
from flow import EXACT, check, quantize_for, run
from random_graphs import random_model

from onnxq.core.numerics import sqnr

TARGETS = ("onnxruntime", "tensorrt")

TYPICAL = 20.0
"""dB: the median output of a graph. Single outputs may drown: a small difference of large tensors, or
what a Clip leaves of a range that is mostly cut off."""


@pytest.mark.parametrize("layers", [6, 12, 24])
@pytest.mark.parametrize("seed", range(24))
def test_random_graphs(seed, layers):
    model = random_model(1000 * layers + seed, layers)
    for flow in quantize_for(TARGETS, model):
        if flow.plan.points:
            check(flow, at_least=-np.inf, exact=-np.inf)
            compare(flow)


def compare(flow):
    """Close to float in the median; fused as unfused up to ties, or well below the quantization noise."""
    expected, plain = (run(model, flow.feeds, optimize=False) for model in (flow.model, flow.int8))
    noise = [sqnr(one, other) for one, other in zip(expected, plain, strict=True)]
    assert np.median(noise) > TYPICAL
    if flow.plan.target == "onnxruntime":
        for name, one, other, limit in zip(
            flow.int8.graph.outputs, plain, run(flow.int8, flow.feeds), noise, strict=True
        ):
            assert sqnr(one, other) > min(EXACT, limit - 6), name
