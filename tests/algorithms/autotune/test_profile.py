"""Profiles of real runs, and how they are traced back."""

import numpy as np
import pytest
from benches import CHAIN, bench_for
from graphs import parse

from calibrators.data.samples import Sample
from onnxq.algorithms.autotune.fusion_groups import cut_up
from onnxq.algorithms.autotune.kernel_trace import trace
from onnxq.algorithms.autotune.profile import Kernel, Profile, profiles

SETTINGS = {"providers": ("CPUExecutionProvider",), "threads": 1, "seconds": 0.02}


@pytest.fixture(scope="module")
def timed():
    """A small network, in float and in integers, with the profiles of both."""
    draft, context = bench_for(CHAIN)
    models = [draft.reference, draft.quantized()]
    return draft, models, profiles(models, context.fit[0], **SETTINGS)


def test_kernels_add_up_to_a_run(timed):
    for profile in timed[2]:
        assert profile.seconds > 0
        assert sum(k.seconds for k in profile.kernels) == pytest.approx(profile.seconds, rel=0.5)
        assert all(k.seconds >= 0 for k in profile.kernels)
    assert "QLinearConv" in {k.op_type for k in timed[2][1].kernels}


def test_every_kernel_is_traced(timed):
    draft, models, found = timed
    for model, profile in zip(models, found, strict=True):
        traced = trace(profile, model.graph, draft.reference.graph)
        assert "" not in traced.tensors
        whole = sum(traced.nodes.values()) + sum(traced.tensors.values())
        assert whole == pytest.approx(sum(k.seconds for k in profile.kernels))
        assert set(traced.owners) == {node.name for node in draft.reference.graph}
        assert set(traced.nodes) <= set(traced.owners.values())


def test_conversions_are_those_of_their_tensors(timed):
    draft, models, found = timed
    traced = trace(found[1], models[1].graph, draft.reference.graph)
    assert "x" in traced.quantized
    assert "a" not in traced.quantized
    assert traced.elements["x"] == 4 * 6 * 6


def test_a_relu_belongs_to_its_convolution(timed):
    draft, models, found = timed
    traces = [trace(p, m.graph, draft.reference.graph) for p, m in zip(found, models, strict=True)]
    parts = cut_up(draft.reference.graph, draft.plan, *traces)
    by_output = {node.outputs[0].name: parts.of_node[node.name] for node in draft.reference.graph}
    assert by_output["a"] is by_output["r"]
    assert by_output["a"] is not by_output["d"]
    assert {name for unit in parts.units for name in unit.planned} == draft.plan.integer_nodes.keys()
    first = next(tie for tie in parts.ties if tie.tensor == "x")
    assert (first.source, first.integers, first.floats) == (None, (by_output["a"],), ())
    inner = next(tie for tie in parts.ties if tie.tensor == "r")
    assert inner.source is by_output["a"]


BODY = """g (float[N] x, bool c) => (float[N] y) {
  a = Relu(x)
  b = If (c) <then_branch = t () => (float[N] u) { u = Exp(a) }, else_branch = e () => (float[N] v) { v = Log(a) }>
  y = Neg(b) }"""


def test_bodies_of_control_flow_are_part_of_their_node():
    sample = Sample("s", {"x": np.ones(2, np.float32), "c": np.array(True)})
    (profile,) = profiles([named(parse(BODY))], sample, **SETTINGS)
    assert [kernel.op_type for kernel in profile.kernels] == ["Relu", "If", "Neg"]


# --- traced without running -----------------------------------------------------------------------

FUSED = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,1,1] w, float[4,4,1,1] v>
{ a = Conv(x, w)  r = HardSwish(a)  b = Conv(r, v)  y = Add(b, r) }"""


def kernel(op_type, name, inputs, outputs, seconds=1.0):
    return Kernel(op_type, name, tuple(inputs), tuple(outputs), 144, seconds)


def named(model):
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    return model


def test_layouts_and_fusions_are_seen_through():
    graph = named(parse(FUSED, opset=14)).graph
    kernels = (
        kernel("ReorderInput", "ReorderInput_token_3", ["x"], ["reorder_token_1"], 0.25),
        kernel("Conv", "a_nchwc", ["reorder_token_1", "w2"], ["reorder_token_2"]),
        kernel("Conv", "b_nchwc", ["reorder_token_2", "v2"], ["reorder_token_4"], 2.0),
        kernel("ReorderOutput", "ReorderOutput_token_5", ["reorder_token_4"], ["y"], 0.5),
    )
    traced = trace(Profile(3.75, kernels), graph, graph)
    assert traced.nodes == {"node_a": 1.0, "node_b": 2.0}
    assert traced.owners == {"node_a": "node_a", "node_r": "node_a", "node_b": "node_b", "node_y": "node_b"}
    assert traced.tensors == {"x": 0.25, "y": 0.5}


def test_parts_of_a_node_that_was_taken_to_pieces_count_for_it():
    graph = named(parse(FUSED, opset=14)).graph
    kernels = (
        kernel("Conv", "node_a", ["x", "w"], ["a"]),
        kernel("HardSigmoid", "", ["a"], ["_inside"], 0.25),
        kernel("Mul", "", ["a", "_inside"], ["r"], 0.5),
        kernel("FusedConv", "fused node_b", ["r", "v", "", "r"], ["y"], 2.0),
    )
    traced = trace(Profile(3.75, kernels), graph, graph)
    assert traced.nodes == {"node_a": 1.0, "node_r": 0.75, "node_y": 2.0}
    assert traced.owners["node_b"] == "node_y"
