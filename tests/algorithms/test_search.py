"""The search for what must stay float."""

import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from benches import CHAIN, bench_for, nudged

import onnxq
from onnxq.algorithms.gauge import Gauge
from onnxq.algorithms.ladder import FLOAT, Step, floated
from onnxq.algorithms.variants import Variants
from onnxq.algorithms.search import search
from onnxq.config import QuantConfig
from onnxq.errors import CalibrationError, ConfigError, ModelError
from onnxq.goal import Goal

CONFIG = QuantConfig(method="minmax")


@pytest.fixture(autouse=True)
def short_races(monkeypatch):
    monkeypatch.setattr("onnxq.algorithms.gauge.RACE_SECONDS", 0.0)


def middling(draft, bench, config=CONFIG, share=0.5):
    """A goal between the quantized model and the best that has one node in integers."""
    make, nodes = Variants(draft, bench, config), set(draft.plan.nodes)
    ends = [bench.judge.quality(make(floated(nodes - {name})).quantized()).sqnr for name in nodes]
    base = bench.judge.quality(draft.quantized()).sqnr
    return Goal("sqnr", base + share * (max(filter(math.isfinite, ends)) - base))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_goal_holds_and_no_float_node_is_superfluous(target, share):
    config = QuantConfig(method="minmax", target=target)
    draft, bench = bench_for(target=target)
    make, nodes = Variants(draft, bench, config), set(draft.plan.nodes)
    goal = middling(draft, bench, config, share)
    found, result = search(draft, goal, bench, config)
    quality = bench.judge.quality(found.quantized())
    assert quality.sqnr >= goal.at_least
    assert result.chosen.sqnr == pytest.approx(quality.sqnr, abs=0.01)
    floats = nodes - found.plan.nodes.keys()
    assert set(result.chosen.floats) == floats
    assert 0 < len(floats) < len(nodes)
    for name in floats:
        less = make(floated(floats - {name}))
        assert (
            less.plan.nodes.keys() == found.plan.nodes.keys()
            or bench.judge.quality(less.quantized()).sqnr < goal.at_least
        )


def test_a_goal_that_holds_already_costs_nothing():
    draft, bench = bench_for()
    found, result = search(draft, Goal("sqnr", 5), bench, CONFIG)
    assert found is draft
    assert result.chosen.floats == ()
    assert len(result.attempts) == 1
    assert result.chosen.speed > 0


def test_a_goal_out_of_reach_is_an_error_that_tells_the_best():
    draft, bench = bench_for()
    with pytest.raises(
        ModelError, match=r"sqnr>=300 is reached by no model .* the best has sqnr [\d.]+ with \d of 7"
    ):
        search(draft, Goal("sqnr", 300), bench, CONFIG)


def test_a_goal_needs_samples_and_outputs_that_have_it():
    draft, bench = bench_for(held=0)
    with pytest.raises(CalibrationError, match="needs samples"):
        search(draft, Goal("sqnr", 5), bench, CONFIG)
    draft, bench = bench_for(
        CHAIN.replace("float[N,5] y", "float[N,1] y").replace("float[8,5] v", "float[8,1] v")
    )
    with pytest.raises(ConfigError, match="its outputs have no agreement"):
        search(draft, Goal("agreement", 0.9), bench, CONFIG)


def test_agreement_can_be_a_goal():
    draft, bench = bench_for(count=40)
    base = search(draft, Goal("agreement", 0.01), bench, CONFIG)[1].chosen.value
    goal = Goal("agreement", base + 0.5 * (1 - base))
    _, result = search(draft, goal, bench, CONFIG)
    assert result.chosen.value >= goal.at_least
    assert result.chosen.floats


def test_a_measure_of_ones_own_sees_the_model():
    draft, bench = bench_for()

    def float_share(path):
        nodes = onnx.load(path).graph.node
        return 1 - sum(node.op_type == "QuantizeLinear" for node in nodes) / 10

    base = float_share_of(draft, float_share)
    _, result = search(draft, Goal(float_share, base + 0.25), bench, CONFIG)
    assert result.chosen.value >= base + 0.25
    assert result.goal.name == "float_share"


def float_share_of(draft, metric):
    count = sum(node.op_type == "QuantizeLinear" for node in draft.quantized().graph)
    return 1 - count / 10


def test_the_curve_has_what_nothing_beats():
    draft, bench = bench_for()
    _, result = search(draft, middling(draft, bench), bench, CONFIG)
    points = [(len(attempt.floats), attempt.value) for attempt in result.curve]
    assert points == sorted(points)
    assert len({count for count, _ in points}) == len(points)
    assert points[0][0] == 0
    assert any(attempt.floats == result.chosen.floats for attempt in result.curve)


# --- What stays, and what becomes exact again --------------------------------------------------


def test_corrections_stay_where_integers_do_and_only_there():
    plain, bench = bench_for()
    draft = nudged(plain)
    kept = Variants(draft, bench, CONFIG)(floated({"Conv_c"}))
    arrays = {
        name: [m.graph.initializers[name].const_value.numpy() for m in (kept.model, draft.model, draft.exact)]
        for name in ("w1", "b1", "w2", "b2", "w3")
    }
    for name, (now, corrected, exact) in arrays.items():
        np.testing.assert_array_equal(now, exact if name in ("w2", "b2") else corrected)
    assert kept.exact is draft.exact
    assert all(
        kept.plan.params[n] is draft.plan.params[n] for n in kept.plan.params if n in draft.plan.params
    )
    assert kept.plan.floats["Conv_c"].reason == "it stays float so that the goal is reached"


def test_tensors_that_were_not_observed_get_ranges():
    text = """g (float[N,4,6,6] x) => (float[N,8,4,4] y) <float[8,4,3,3] w1, float[8,8,1,1] w2, float[8,8,1,1] w3>
    { a = Conv (x, w1)  m = MaxPool <kernel_shape = [1,1]> (a)  b = Conv (m, w2)  y = Conv (b, w3) }"""
    draft, bench = bench_for(text, quantize_outputs=True)
    config = CONFIG.model_copy(update={"quantize_outputs": True})
    assert "m" not in draft.plan.observed
    kept = Variants(draft, bench, config)(floated({"Conv_a", "MaxPool_m"}))
    assert "m" in kept.plan.observed
    assert kept.plan.params.keys() == kept.plan.groups.keys()
    assert bench.judge.quality(kept.quantized()).sqnr > 30


def test_names_are_no_patterns():
    draft, bench = bench_for()
    for model in (draft.exact, draft.model):
        for node in model.graph:
            node.name = f"{node.op_type}[ab]"[-40:] + str(node.outputs[0].name)
    draft, config = replace(draft), CONFIG
    plan = Variants(draft, bench, config).plan(floated(["Conv[ab]a"]))
    assert plan.floats["Conv[ab]a"].reason.startswith("it stays float")
    assert "Conv[ab]c" in plan.nodes


# --- Interrupts, and going on ------------------------------------------------------------------


def stop_after(monkeypatch, count):
    """Ctrl-C when the next model is to be measured after ``count``."""
    measure, done = Gauge.measure, []

    def measured(self, model, floats, widened):
        if len(done) >= count:
            raise KeyboardInterrupt
        done.append(floats)
        return measure(self, model, floats, widened)

    monkeypatch.setattr(Gauge, "measure", measured)
    return done


def test_what_was_tried_is_not_tried_again(tmp_path, monkeypatch):
    draft, bench = bench_for()
    goal, file = middling(draft, bench, share=0.9), tmp_path / "log.json"
    whole = search(draft, goal, bench, CONFIG)[1]
    config = CONFIG.model_copy(update={"search_log": file})
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        search(draft, goal, bench, config)
    assert len(json.loads(file.read_text())["attempts"]) == 2
    monkeypatch.undo()
    done = stop_after(monkeypatch, 100)
    found = search(draft, goal, bench, config)[1]
    assert found.chosen.floats == whole.chosen.floats
    assert len(done) == len(whole.attempts) - 2
    assert search(draft, goal, bench, config)[1].attempts == found.attempts
    assert len(done) == len(whole.attempts) - 2
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]


def test_attempts_of_another_search_are_refused(tmp_path):
    draft, bench = bench_for()
    config = CONFIG.model_copy(update={"search_log": tmp_path / "log.json"})
    search(draft, Goal("sqnr", 5), bench, config)
    content = config.search_log.read_bytes()
    for other, goal in ((nudged(draft), Goal("sqnr", 5)), (draft, Goal("agreement", 0.1))):
        with pytest.raises(ConfigError, match="another"):
            search(other, goal, bench, config)
    assert config.search_log.read_bytes() == content


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": ""}', "\x00\xff"])
def test_a_file_that_is_something_else_stays_as_it_is(tmp_path, content):
    draft, bench = bench_for()
    file = tmp_path / "log.json"
    file.write_text(content, "latin-1")
    with pytest.raises(ConfigError, match="does not hold the attempts"):
        search(draft, Goal("sqnr", 5), bench, CONFIG.model_copy(update={"search_log": file}))
    assert file.read_text("latin-1") == content


def test_an_interrupt_keeps_the_best_if_it_reaches_the_goal(monkeypatch):
    draft, bench = bench_for()
    goal = middling(draft, bench, share=0.9)
    whole = search(draft, goal, bench, CONFIG)[1]
    first = next(n for n, _ in enumerate(whole.attempts))
    outcomes = []
    for count in range(1, len(whole.attempts)):
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            try:
                found, result = search(draft, goal, bench, CONFIG)
            except KeyboardInterrupt:
                outcomes.append("raised")
                continue
        assert bench.judge.quality(found.quantized()).sqnr >= goal.at_least
        assert result.interrupted
        assert "SEARCH INTERRUPTED" in result.doubts[0]
        outcomes.append("kept")
    assert outcomes[first] == "raised"
    assert outcomes[-1] == "kept"
    assert outcomes == sorted(outcomes, reverse=True)


# --- A real model ------------------------------------------------------------------------------


def test_a_few_layers_of_a_real_model_make_up_most_of_the_noise(lite0, calibration_images, tmp_path):
    output = tmp_path / "o.onnx"
    config = QuantConfig(
        data=calibration_images,
        preprocess="resize=256,crop=224,mean=127,std=128",
        samples=20,
        method="minmax",
        correct="none",
        search_log=tmp_path / "log.json",
    )
    before = onnxq.quantize_static(lite0, output, config=config)
    limit = before.quality.sqnr + 3
    result = onnxq.quantize_static(lite0, output, config=config, goal=Goal("sqnr", limit))
    assert result.quality.sqnr >= limit
    floats = set(result.search.chosen.floats)
    assert floats == before.plan.nodes.keys() - result.plan.nodes.keys()
    assert 0 < len(floats) < 0.25 * len(before.plan.nodes)
    assert result.search.curve[0].floats == ()
    assert all(attempt.value >= limit for attempt in result.search.curve if len(attempt.floats) > len(floats))
