"""What becomes float where a model is of little use."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from benches import CHAIN, bench_for
from cli import onnxq as onnxq_command
from cli import save_data, save_model

from onnxq.algorithms.mixed_precision import noisy_nodes as module
from onnxq.algorithms.mixed_precision.noisy_nodes import hold
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.core.floor import GOOD_SQNR, Floor
from onnxq.verify.accuracy import Quality
from onnxq.verify.outputs.tally import OutputQuality

LOUDNESS = """g (float[N,64] x) => (float[N,16] y)
<float[64,32] w1, float[32,32] w2, float[32,16] w3, float two = {2}, float little = {0.0001}>
{
    a = MatMul (x, w1)  p = Pow (a, two)  b = MatMul (p, w2)  c = Relu (b)  d = Add (c, little)
    l = Log (d)  y = MatMul (l, w3)
}"""
"""Energies: small ones count as much as large ones, once their logarithm is taken."""


@pytest.fixture
def bench(monkeypatch):
    def made(text, **options):
        draft, context = bench_for(text, **options)
        monkeypatch.setattr(type(context), "can_validate", True)
        return draft, context

    return made


def test_few_nodes_make_the_noise(bench):
    draft, context = bench(LOUDNESS)
    before = context.evaluate(draft)
    floor = Floor(before.sqnr + 3)
    better, rescue = hold(draft, floor, context, 0.0)
    assert rescue.held
    assert rescue.finished
    assert context.evaluate(better).holds(floor)
    assert rescue.before == pytest.approx(before.sqnr)
    assert rescue.after == pytest.approx(context.evaluate(better).sqnr)
    assert rescue.floats.keys() == draft.plan.integer_nodes.keys() - better.plan.integer_nodes.keys()
    assert 0 < len(rescue.floats) < len(draft.plan.integer_nodes)
    assert all(f"{before.sqnr:.1f} dB" in reason for reason in rescue.floats.values())


@pytest.mark.parametrize(
    ("speeds", "sqnr", "affordable"),
    [
        ((0.95, 0.9), 16.0, True),
        ((0.6, 1.2), 22.0, True),
        ((0.3, 1.2), 20.0 + module.MARGIN, False),
        ((0.3, 1.2), 22.5, True),
        ((0.3, 1.05), 22.5, False),
        ((0.6, 1.2), 16.0, False),
    ],
)
def test_what_a_good_model_may_cost(bench, monkeypatch, speeds, sqnr, affordable):
    """Before, the model has 12 dB: 22.5 dB is a gain of more than ten."""
    draft, context = bench(CHAIN)
    monkeypatch.setattr(module, "_speeds", lambda *_: speeds)
    enough, one = (
        module._Tried((), module.Steps(), draft, Quality({"y": OutputQuality(db, None)}, 8))
        for db in (12.0, sqnr)
    )
    assert module._is_affordable(one, enough, Floor(), context) is affordable


def test_a_good_model_is_left_alone(bench):
    draft, context = bench(CHAIN)
    assert context.evaluate(draft).sqnr > GOOD_SQNR
    assert hold(draft, Floor(), context, 0.0) == (draft, None)


@pytest.mark.parametrize("floor", [None, Floor(100.0)])
def test_without_real_samples_or_a_floor_nothing_is_tried(monkeypatch, floor):
    draft, context = bench_for(LOUDNESS)
    monkeypatch.setattr(type(context), "can_validate", floor is None)
    assert hold(draft, floor, context, 0.0) == (draft, None)


ALONE = "g (float[N,64] x) => (float[N,16] y) <float[64,16] w> { y = MatMul (x, w) }"


def test_what_few_float_nodes_do_not_help_becomes_float(bench):
    draft, context = bench(ALONE)
    better, rescue = hold(draft, Floor(200.0), context, 0.0)
    assert not better.plan.points
    assert context.evaluate(better).sqnr == math.inf
    assert rescue.held
    assert rescue.refused.sqnr == context.evaluate(draft).sqnr
    assert rescue.floats.keys() == draft.plan.integer_nodes.keys()


def test_few_bits_stay_where_nothing_helps(bench):
    draft, context = bench(ALONE, weight="int4", block_size=32)
    same, rescue = hold(draft, Floor(200.0), context, 0.0)
    assert same is draft
    assert not rescue.held
    assert not rescue.floats
    assert rescue.refused is None


def test_the_command_writes_the_float_model_or_with_strict_nothing(tmp_path):
    model, output = save_model(tmp_path / "in.onnx", ALONE), tmp_path / "out.onnx"
    x = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    data = save_data(tmp_path / "data.npz", x=x)
    given = ("quantize", model, output, "--data", data, "--floor", "200", "--autotune", "off")
    done = onnxq_command(*given, "--strict")
    assert done.returncode == 1
    assert "--strict, so nothing is written: INACCURATE: SQNR" in done.stderr
    assert not output.exists()
    done = onnxq_command(*given)
    assert done.returncode == 0, done.stderr
    assert "the output is the cleaned float model" in done.stderr
    assert [node.op_type for node in onnx.load(output).graph.node] == ["MatMul"]
    assert output.stat().st_size <= model.stat().st_size


def test_the_search_ends_when_its_time_is_over(bench, monkeypatch):
    """What is useless then becomes float."""
    monkeypatch.setattr(module, "LEAST_SECONDS", -1.0)
    draft, context = bench(LOUDNESS)
    whole, rescue = hold(draft, Floor(100.0), context, 0.0)
    assert not whole.plan.points
    assert rescue.held
    assert not rescue.finished
    assert rescue.refused.sqnr == context.evaluate(draft).sqnr
    assert all("was found in time" in reason for reason in rescue.floats.values())


def test_the_user_may_give_more_time(bench, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SECONDS", -1.0)
    draft, context = bench(LOUDNESS, time_limit=60.0)
    better, rescue = hold(draft, Floor(context.evaluate(draft).sqnr + 3), context, 0.0)
    assert rescue.finished
    assert rescue.held
    assert better.plan.points


def test_nodes_are_ranked_on_one_sample_where_more_take_too_long(bench, monkeypatch):
    counts = []

    def counted(draft, context, samples, is_late):
        counts.append(samples)
        return sensitivities(draft, context, samples=samples, is_late=is_late)

    monkeypatch.setattr(module, "sensitivities", counted)
    draft, context = bench(LOUDNESS)
    floor = Floor(context.evaluate(draft).sqnr + 3)
    hold(draft, floor, context, 0.0)
    ticks = itertools.count()
    monkeypatch.setattr(module, "clock_of", lambda _: lambda: float(next(ticks)))
    hold(draft, floor, context, 0.0)
    assert counts == [1, module.RANKED_SAMPLES, 1]


def test_decisions_count_below_a_good_sqnr():
    floor = Floor()
    assert not floor.holds(15.0, 0.8)
    assert floor.holds(15.0, 0.95)
    assert floor.holds(25.0, 0.8)
    assert floor.holds(float("nan"), None)
    assert not floor.holds(9.0, None)


@pytest.fixture
def worth(monkeypatch):
    """Float nodes above the floor are worth it."""
    monkeypatch.setattr(module, "GOOD_SQNR", 200.0)
    monkeypatch.setattr(module, "LARGE_GAIN", 0.1)


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_above_the_floor_nodes_become_float_that_cost_no_speed(bench, worth, monkeypatch, speed):
    monkeypatch.setattr(module, "gain", lambda *_: speed)
    draft, context = bench(LOUDNESS)
    floor = replace(Floor(), sqnr=context.evaluate(draft).sqnr - 1, agreement=0.0)
    better, rescue = hold(draft, floor, context, 0.0)
    assert (better is draft) is (rescue is None) is (speed < module.KEPT_SPEED)


def test_without_timing_only_a_few_nodes_above_the_floor_become_float(bench, worth):
    draft, context = bench(LOUDNESS, autotune="off")
    sqnr = context.evaluate(draft).sqnr
    _, rescue = hold(draft, replace(Floor(), sqnr=sqnr - 1, agreement=0.0), context, 0.0)
    assert rescue.held
    assert len(rescue.floats) <= module.FEW
    assert rescue.after > rescue.before


@pytest.mark.parametrize("options", [{"weight": "int4"}, {"weight": "int4", "block_size": 32}], ids=str)
def test_few_bits_are_kept_as_long_as_the_model_is_of_use(bench, options):
    draft, context = bench(
        "g (float[N,64] x) => (float[N,64] y) <float[64,64] w1, float[64,64] w2> "
        "{ a = MatMul (x, w1)  r = Relu (a)  y = MatMul (r, w2) }",
        **options,
    )
    assert draft.plan.is_compact
    assert Floor().sqnr < context.evaluate(draft).sqnr < GOOD_SQNR
    assert hold(draft, Floor(), context, 0.0) == (draft, None)
