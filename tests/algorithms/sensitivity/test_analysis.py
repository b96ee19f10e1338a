"""What each point costs: partial runs give what whole runs of Q/DQ models give."""

from dataclasses import replace

import numpy as np
import pytest
from benches import CHAIN, bench_for, nudged

from calibrators.session import open_session
from onnxq.algorithms.sensitivity import analysis, float_tensors, stages
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.algorithms.watching import Watcher
from onnxq.graph.qdq.insert_qdq import insert_qdq

TWO_OUTPUTS = """g (float[N,6] x) => (float[N,4] y, float[N,4] z)
<float[6,8] w1, float[8,4] w2, float[8,4] w3>
{ a = MatMul (x, w1)  r = Relu (a)  y = MatMul (r, w2)  z = MatMul (r, w3) }"""

BRANCH = """g (float[N,6] x, bool c) => (float[N,4] y)
<float[6,8] w1, float[8,4] w2>
{ a = MatMul (x, w1)  r = Relu (a)
  s = If (c) <then_branch = t () => (float[N,8] p) { p = Neg (r) },
              else_branch = e () => (float[N,8] q) { q = Abs (r) }>
  y = MatMul (s, w2) }"""

POOLED = """g (float[N,4,8,8] x) => (float[N,5] y)
<float[8,4,3,3] w1, float[8,8,3,3] w2, float[8,5] v>
{ a = Conv (x, w1)  r = Relu (a)  m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
  c = Conv (m, w2)  p = GlobalAveragePool (c)  f = Flatten (p)  y = MatMul (f, v) }"""

CONVOLUTION = """g (float[N,4,6,6] x) => (float[N,8,4,4] y) <float[8,4,3,3] w1> { y = Conv (x, w1) }"""


def by_whole_runs(draft, context, group):
    """Noise over signal when only the points of ``group`` become Q/DQ pairs."""
    points = tuple(point for point in draft.plan.points if point.group == group.name)
    model = insert_qdq(
        draft.model if group.constant else draft.reference, replace(draft.plan, points=points, biases=())
    )
    noise = signal = 0.0
    sessions = [open_session(m, threads=1, optimize=False) for m in (draft.reference, model)]
    for sample in context.fit[: analysis.RANKED_SAMPLES]:
        exact, given = (session.run(None, dict(sample.feeds)) for session in sessions)
        ratios = [(np.square(a - b).sum(), np.square(a).sum()) for a, b in zip(exact, given, strict=True)]
        noise, signal = np.add((noise, signal), np.transpose(ratios))
    return float(np.mean(noise / signal))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("text", [CHAIN, TWO_OUTPUTS, POOLED], ids=["chain", "two outputs", "shared range"])
def test_partial_runs_give_the_noise_of_whole_ones(text, target):
    draft, context = bench_for(text, target=target)
    found = sensitivities(draft, context)
    assert {one.group.name for one in found} == draft.plan.groups.keys()
    noises = [one.quality.noise for one in found]
    assert noises == sorted(noises, reverse=True)
    for one in found:
        assert one.quality.noise == pytest.approx(
            by_whole_runs(draft, context, one.group), rel=0.02, abs=1e-9
        )


def test_quantized_outputs_are_points_too():
    draft, context = bench_for(CONVOLUTION, quantize_outputs=True)
    (last,) = (one for one in sensitivities(draft, context) if "" in one.readers)
    assert last.quality.noise == pytest.approx(by_whole_runs(draft, context, last.group), rel=0.02)
    assert last.quality.noise > 0


def test_a_bad_range_is_found():
    draft, context = bench_for()
    params = dict(draft.plan.params)
    name = next(
        point.group for point in draft.plan.points if point.consumer == "Conv_d" and point.input_index == 0
    )
    params[name] = replace(params[name], scale=params[name].scale * 20)
    worst = sensitivities(replace(draft, plan=draft.plan.with_params(params)), context)[0]
    assert (worst.group.name, worst.kind) == (name, "activation")
    assert worst.readers["Conv_d"] == "Conv"


def test_corrected_weights_are_ranked_with_their_biases():
    draft, context = bench_for()
    before, after = by_name(sensitivities(draft, context)), by_name(sensitivities(nudged(draft), context))
    constant = {name for name, group in draft.plan.groups.items() if group.constant and name.startswith("w")}
    assert len(constant) == 3
    assert all(after[name] > before[name] for name in constant)
    assert all(after[name] == before[name] for name in before.keys() - constant - {"v"})


def by_name(found):
    return {one.group.name: one.quality.noise for one in found}


def test_memory_is_bounded_and_changes_nothing(monkeypatch):
    draft, context = bench_for()
    before = by_name(sensitivities(draft, context))
    runs = []
    watch = Watcher.watch

    def watched(self, model, *others, **options):
        runs.append(model)
        return watch(self, model, *others, **options)

    monkeypatch.setattr(Watcher, "watch", watched)
    assert by_name(sensitivities(draft, context)) == before
    few = sum(model is draft.reference for model in runs)
    monkeypatch.setattr(float_tensors, "KEPT_BYTES", 1)
    runs.clear()
    assert by_name(sensitivities(draft, context)) == before
    assert sum(model is draft.reference for model in runs) > few == 2


def test_only_what_lies_behind_a_point_runs(monkeypatch):
    draft, _ = bench_for()
    monkeypatch.setattr(stages, "STAGES", 1)
    (stage,) = stages.stages(draft, draft.plan.groups.values())
    assert stage.rest is None
    parts = {piece.group.name: piece.part for piece in stage.pieces}
    assert [node.op_type for node in parts["v"].model.graph] == ["MatMul"]
    feeds = {name: set(part.feeds) for name, part in parts.items()}
    assert feeds["v"] == {"f"}
    assert feeds["w3"] == {"t"}
    assert feeds["w2"] == {"r"}
    assert feeds["x"] == {"x"}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("text", [CHAIN, TWO_OUTPUTS, POOLED], ids=["chain", "two outputs", "shared range"])
def test_it_does_not_matter_where_the_model_is_cut(text, count, monkeypatch):
    draft, context = bench_for(text)
    monkeypatch.setattr(stages, "STAGES", count)
    for one in sensitivities(draft, context):
        assert one.quality.noise == pytest.approx(
            by_whole_runs(draft, context, one.group), rel=0.02, abs=1e-9
        )


def test_a_stage_ends_behind_the_bias_that_belongs_to_it(monkeypatch):
    text = """g (float[N,3,6] x) => (float[N,3,4] y) <float[6,8] w1, float[8] b1, float[8,4] w2>
    { p = MatMul (x, w1)  a = Add (p, b1)  r = Relu (a)  y = MatMul (r, w2) }"""
    draft, context = bench_for(text, target="tensorrt")
    assert [node.op_type for node in draft.reference.graph][:2] == ["MatMul", "Add"]
    monkeypatch.setattr(stages, "STAGES", 100)
    before, after = by_name(sensitivities(draft, context)), by_name(sensitivities(nudged(draft), context))
    assert after["w1"] > before["w1"]
    ends = {
        piece.group.name: stage.rest
        for stage in stages.stages(draft, draft.plan.groups.values())
        for piece in stage.pieces
    }
    assert [node.op_type for node in ends["w1"].model.graph] == ["Relu", "MatMul"]


def test_with_control_flow_the_whole_model_runs():
    draft, context = bench_for(BRANCH, feeds={"c": np.array(True)})
    found = sensitivities(draft, context)
    assert {one.group.name for one in found} == draft.plan.groups.keys()
    for one in found:
        assert one.quality.noise == pytest.approx(
            by_whole_runs(draft, context, one.group), rel=0.02, abs=1e-9
        )
    (stage,) = stages.stages(draft, draft.plan.groups.values())
    assert all(piece.part.feeds == ("x", "c") for piece in stage.pieces)


def test_samples_that_the_model_refuses_are_passed_over():
    draft, context = bench_for()
    bad = replace(context.fit[0], feeds={"x": np.zeros((1, 3, 6, 6), np.float32)})
    told = []
    spoiled = replace(context, fit=[bad, *context.fit[:7]], on_bad=lambda error, count: told.append(count))
    few = replace(context, fit=context.fit[:7])
    assert sensitivities(draft, spoiled) == sensitivities(draft, few)
    assert told == [1]
