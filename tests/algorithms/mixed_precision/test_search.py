"""The search for what must be wider, or stay float."""

import json
import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from benches import CHAIN, bench_for, nudged

import onnxq
from onnxq.algorithms.corrections import correct
from onnxq.algorithms.mixed_precision.evaluator import GoalEvaluator
from onnxq.algorithms.mixed_precision.priorities import stages, taken
from onnxq.algorithms.mixed_precision.replan import CLOSED_FORMS, Replanner
from onnxq.algorithms.mixed_precision.search import search
from onnxq.algorithms.mixed_precision.steps import Precision, Steps, keep_float
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError, ModelError
from onnxq.core.goal import Goal

CONFIG = QuantConfig(method="minmax")


@pytest.fixture(autouse=True)
def short_races(monkeypatch):
    monkeypatch.setattr("onnxq.algorithms.mixed_precision.evaluator.RACE_SECONDS", 0.0)


def middling(draft, context, config=CONFIG, share=0.5):
    """A goal between the quantized model and the best that has one node in integers."""
    make, nodes = Replanner(draft, context.with_config(config)), set(draft.plan.integer_nodes)
    ends = [context.evaluator.evaluate(make(keep_float(nodes - {name})).quantized()).sqnr for name in nodes]
    base = context.evaluator.evaluate(draft.quantized()).sqnr
    return Goal("sqnr", base + share * (max(filter(math.isfinite, ends)) - base))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_goal_holds_and_no_float_node_is_superfluous(target, share):
    config = QuantConfig(method="minmax", target=target)
    draft, context = bench_for(target=target)
    make, nodes = Replanner(draft, context.with_config(config)), set(draft.plan.integer_nodes)
    goal = middling(draft, context, config, share)
    found, result = search(draft, goal, context.with_config(config))
    quality = context.evaluator.evaluate(found.quantized())
    assert quality.sqnr >= goal.at_least
    assert result.chosen.sqnr == pytest.approx(quality.sqnr, abs=0.01)
    floats = nodes - found.plan.integer_nodes.keys()
    assert set(result.chosen.floats) == floats
    assert 0 < len(floats) < len(nodes)
    for name in floats:
        less = make(keep_float(floats - {name}))
        assert (
            less.plan.integer_nodes.keys() == found.plan.integer_nodes.keys()
            or context.evaluator.evaluate(less.quantized()).sqnr < goal.at_least
        )


def test_a_goal_that_holds_already_costs_nothing():
    draft, context = bench_for()
    found, result = search(draft, Goal("sqnr", 5), context.with_config(CONFIG))
    assert found is draft
    assert result.chosen.floats == ()
    assert len(result.attempts) == 1
    assert result.chosen.speed > 0


def test_a_goal_out_of_reach_is_an_error_that_tells_the_best():
    draft, context = bench_for()
    with pytest.raises(
        ModelError, match=r"no model .* reaches the goal sqnr>=300: the best has sqnr [\d.]+ with \d of 7"
    ):
        search(draft, Goal("sqnr", 300), context.with_config(CONFIG))


def test_a_goal_needs_samples_and_outputs_that_have_it():
    draft, context = bench_for(held=0)
    with pytest.raises(CalibrationError, match="needs samples"):
        search(draft, Goal("sqnr", 5), context.with_config(CONFIG))
    draft, context = bench_for(
        CHAIN.replace("float[N,5] y", "float[N,1] y").replace("float[8,5] v", "float[8,1] v")
    )
    with pytest.raises(ConfigError, match="its outputs have no agreement"):
        search(draft, Goal("agreement", 0.9), context.with_config(CONFIG))


def test_agreement_can_be_a_goal():
    draft, context = bench_for(count=40)
    base = search(draft, Goal("agreement", 0.01), context.with_config(CONFIG))[1].chosen.value
    goal = Goal("agreement", base + 0.5 * (1 - base))
    _, result = search(draft, goal, context.with_config(CONFIG))
    assert result.chosen.value >= goal.at_least
    assert result.chosen.floats


def test_a_measure_of_ones_own_sees_the_model():
    draft, context = bench_for()

    def float_share(path):
        nodes = onnx.load(path).graph.node
        return 1 - sum(node.op_type == "QuantizeLinear" for node in nodes) / 10

    base = float_share_of(draft, float_share)
    _, result = search(draft, Goal(float_share, base + 0.25), context.with_config(CONFIG))
    assert result.chosen.value >= base + 0.25
    assert result.goal.name == "float_share"


def float_share_of(draft, metric):
    count = sum(node.op_type == "QuantizeLinear" for node in draft.quantized().graph)
    return 1 - count / 10


def test_the_curve_has_what_nothing_beats():
    draft, context = bench_for()
    _, result = search(draft, middling(draft, context), context.with_config(CONFIG))
    points = [(len(attempt.floats), attempt.value) for attempt in result.curve]
    assert points == sorted(points)
    assert len({count for count, _ in points}) == len(points)
    assert points[0][0] == 0
    assert any(attempt.floats == result.chosen.floats for attempt in result.curve)


# --- What stays, and what becomes exact again --------------------------------------------------


def test_corrections_stay_where_integers_do_and_only_there():
    plain, context = bench_for()
    draft = nudged(plain)
    kept = Replanner(draft, context.with_config(CONFIG))(keep_float({"Conv_c"}))
    arrays = {
        name: [
            m.graph.initializers[name].const_value.numpy() for m in (kept.model, draft.model, draft.reference)
        ]
        for name in ("w1", "b1", "w2", "b2", "w3")
    }
    for name, (now, corrected, exact) in arrays.items():
        np.testing.assert_array_equal(now, exact if name in ("w2", "b2") else corrected)
    assert kept.reference is draft.reference
    assert all(
        kept.plan.params[n] is draft.plan.params[n] for n in kept.plan.params if n in draft.plan.params
    )
    assert kept.plan.float_nodes["Conv_c"].reason == "kept in float to reach the goal"


def test_tensors_that_were_not_observed_get_ranges():
    text = """g (float[N,4,6,6] x) => (float[N,8,4,4] y) <float[8,4,3,3] w1, float[8,8,1,1] w2, float[8,8,1,1] w3>
    { a = Conv (x, w1)  m = MaxPool <kernel_shape = [1,1]> (a)  b = Conv (m, w2)  y = Conv (b, w3) }"""
    draft, context = bench_for(text, quantize_outputs=True)
    config = CONFIG.model_copy(update={"quantize_outputs": True})
    assert "m" not in draft.plan.observed
    kept = Replanner(draft, context.with_config(config))(keep_float({"Conv_a", "MaxPool_m"}))
    assert "m" in kept.plan.observed
    assert kept.plan.params.keys() == kept.plan.groups.keys()
    assert context.evaluator.evaluate(kept.quantized()).sqnr > 30


def test_names_are_no_patterns():
    draft, context = bench_for()
    for model in (draft.reference, draft.model):
        for node in model.graph:
            node.name = f"{node.op_type}[ab]"[-40:] + str(node.outputs[0].name)
    draft, config = replace(draft), CONFIG
    plan = Replanner(draft, context.with_config(config)).plan(keep_float(["Conv[ab]a"]))
    assert plan.float_nodes["Conv[ab]a"].reason.startswith("kept in float")
    assert "Conv[ab]c" in plan.integer_nodes


def test_relu_that_was_fused_stays_float_with_its_node_where_the_target_would_quantize_it_alone():
    config = CONFIG.model_copy(update={"target": "qnn"})
    draft, context = bench_for(target="qnn")
    make = Replanner(draft, context.with_config(config))
    assert "Relu_r" not in draft.plan.integer_nodes
    plan = make.plan(keep_float({"Conv_a"}))
    assert plan.float_nodes["Relu_r"].reason.startswith("kept in float")
    assert not make.plan(keep_float(draft.plan.integer_nodes)).points


# --- Weights of more bits ----------------------------------------------------------------------

FOUR = CONFIG.model_copy(update={"weight": "int4"})


def all_wider(draft, context, config=FOUR):
    """``draft`` with 8 bits for all weights."""
    wider = stages(draft.reference, draft.plan, dict.fromkeys(draft.plan.groups, 0.0))[0]
    return Replanner(draft, context.with_config(config))(taken(wider))


def between(draft, context, share, config=FOUR):
    """A goal between weights of 4 bits and of 8."""
    low, high = (context.evaluate(one).sqnr for one in (draft, all_wider(draft, context, config)))
    return Goal("sqnr", low + share * (high - low))


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-avx2"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_weights_get_more_bits_before_nodes_go_float(target, share):
    config = FOUR.model_copy(update={"target": target})
    draft, context = bench_for(target=target, weight="int4")
    goal = between(draft, context, share, config)
    found, result = search(draft, goal, context.with_config(config))
    assert result.chosen.floats == ()
    assert set(result.chosen.widened.values()) == {"int8"}
    assert context.evaluate(found).sqnr >= goal.at_least
    assert found.plan.integer_nodes == draft.plan.integer_nodes
    bits = {p.consumer: p.spec.dtype.bitwidth for p in found.plan.points if p.tensor in WEIGHTS}
    assert {name for name, width in bits.items() if width == 8} == set(result.chosen.widened)
    assert result.chosen.size < result.attempts[-1].size
    make = Replanner(draft, context.with_config(config))
    for name in result.chosen.widened:
        less = make(Steps(Precision(n, ir.DataType.INT8) for n in result.chosen.widened if n != name))
        assert context.evaluate(less).sqnr < goal.at_least


WEIGHTS = ("w1", "w2", "w3", "v")


def test_what_more_bits_do_not_reach_float_does():
    draft, context = bench_for(weight="int4")
    wide = context.evaluate(all_wider(draft, context)).sqnr
    found, result = search(draft, Goal("sqnr", wide + 3), context.with_config(FOUR))
    assert 0 < len(result.chosen.floats) < len(draft.plan.integer_nodes)
    assert set(result.chosen.floats) == draft.plan.integer_nodes.keys() - found.plan.integer_nodes.keys()
    assert not set(result.chosen.floats) & set(result.chosen.widened)
    assert context.evaluate(found).sqnr >= wide + 3
    assert {len(one.widened) for one in result.attempts if not one.floats} == {0, 4}
    costs = [attempt.cost for attempt in result.curve]
    assert costs == sorted(costs)


def test_what_nothing_reaches_is_told_with_the_best():
    draft, context = bench_for(weight="int4")
    with pytest.raises(
        ModelError, match=r"sqnr>=300: .* with \d of 7 nodes in float(, and \d with wider weights)?$"
    ):
        search(draft, Goal("sqnr", 300), context.with_config(FOUR))


def test_wider_weights_are_the_exact_ones_and_the_others_keep_their_corrections():
    plain, context = bench_for(weight="int4")
    draft = nudged(plain)
    made = Replanner(draft, context.with_config(FOUR))(Steps({Precision("Conv_c", ir.DataType.INT8)}))
    for name in ("w1", "b1", "w2", "b2", "w3", "v"):
        now, corrected, exact = (
            m.graph.initializers[name].const_value.numpy() for m in (made.model, draft.model, draft.reference)
        )
        np.testing.assert_array_equal(now, exact if name in ("w2", "b2") else corrected)
    assert made.plan.params.keys() == draft.plan.params.keys()
    assert {n for n, p in made.plan.params.items() if p is not draft.plan.params[n]} == {"w2"}
    ratio = draft.plan.params["w2"].scale / made.plan.params["w2"].scale
    assert (ratio > 8).all()


def test_wider_weights_have_what_corrections_give_to_a_model_that_is_all_so_wide():
    draft, context = bench_for(weight="int4", count=40, held=16)
    wide = bench_for(count=40, held=16)[0]
    expected, effects = correct(wide, CLOSED_FORMS, context)
    assert any(effect.kept for effect in effects)
    variants = Replanner(nudged(draft), context.with_config(FOUR), CLOSED_FORMS)
    made = variants(Steps({Precision("Conv_c", ir.DataType.INT8)}))
    arrays = [
        [model.graph.initializers[name].const_value.numpy() for name in ("w2", "b2")]
        for model in (made.model, expected.model, draft.reference)
    ]
    for now, then in zip(*arrays[:2], strict=True):
        np.testing.assert_array_equal(now, then)
    assert any((now != exact).any() for now, exact in zip(arrays[0], arrays[2], strict=True))
    w1 = made.model.graph.initializers["w1"].const_value.numpy()
    np.testing.assert_array_equal(w1, nudged(draft).model.graph.initializers["w1"].const_value.numpy())


def test_the_bias_of_wider_weights_still_fits():
    """Its steps are as much finer as those of the weights are."""
    text = """g (float[N,4] x) => (float[N,2] y) <float[4,2] w = {W}, float[2] b = {1e7, -3e6}, float[2,2] v>
    { a = Gemm (x, w, b)  r = Relu (a)  y = MatMul (r, v) }""".replace(
        "{W}", "{" + ", ".join(["0.5", "1"] * 4) + "}"
    )
    draft, context = bench_for(text, weight="int4")
    made = Replanner(draft, context.with_config(FOUR))(Steps({Precision("Gemm_a", ir.DataType.INT8)}))
    (bias,) = (one for one in made.plan.biases if one.tensor == "b")
    scale = made.plan.params[bias.input_group].scale * made.plan.params[bias.weight_group].scale
    assert (np.array([1e7, 3e6]) / scale < 2**31).all()


def test_overrides_of_ones_own_stay():
    config = FOUR.model_copy(update={"override": ("Conv_d: weight=int8", "op:Conv: per_tensor")})
    draft, context = bench_for(weight="int4", override=config.override)
    plan = Replanner(draft, context.with_config(config)).plan(Steps({Precision("Conv_c", ir.DataType.INT8)}))
    specs = {p.tensor: p.spec for p in plan.points if p.tensor in WEIGHTS}
    assert [specs[name].dtype.bitwidth for name in WEIGHTS] == [4, 8, 8, 4]
    assert [specs[name].axis for name in WEIGHTS] == [None, None, None, 1]


BLOCKS = """g (float[N,64] x) => (float[N,8] y) <float[64,64] w, float[64,64] u, float[64,8] v>
{ a = MatMul (x, w)  b = Tanh (a)  c = MatMul (b, u)  d = Tanh (c)  y = MatMul (d, v) }"""


def test_weights_in_blocks_get_more_bits_in_blocks():
    config = FOUR.model_copy(update={"block_size": 32})
    draft, context = bench_for(BLOCKS, weight="int4", block_size=32)
    assert draft.plan.observed == ()
    found, result = search(draft, between(draft, context, 0.5, config), context.with_config(config))
    assert (result.chosen.floats, set(result.chosen.widened.values())) == ((), {"int8"})
    widths = {p.consumer: p.spec.dtype.bitwidth for p in found.plan.points}
    assert {p.spec.block_size for p in found.plan.points} == {32}
    assert {name for name, width in widths.items() if width == 8} == set(result.chosen.widened)
    assert found.plan.observed == ()


def test_a_file_of_an_older_search_is_refused(tmp_path):
    draft, context = bench_for()
    config = CONFIG.model_copy(update={"search_log": tmp_path / "log.json"})
    search(draft, Goal("sqnr", 5), context.with_config(config))
    content = json.loads(config.search_log.read_text())
    del content["version"]
    config.search_log.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="another version of onnxq: name another file, or delete it"):
        search(draft, Goal("sqnr", 5), context.with_config(config))


# --- Interrupts, and going on ------------------------------------------------------------------


def stop_after(monkeypatch, count):
    """Ctrl-C when the next model is to be measured after ``count``."""
    measure, done = GoalEvaluator.evaluate, []

    def measured(self, model, changes):
        if len(done) >= count:
            raise KeyboardInterrupt
        done.append(changes)
        return measure(self, model, changes)

    monkeypatch.setattr(GoalEvaluator, "evaluate", measured)
    return done


@pytest.mark.parametrize("weight", [None, "int4"])
def test_what_was_tried_is_not_tried_again(tmp_path, monkeypatch, weight):
    draft, context = bench_for(weight=weight)
    plain = CONFIG.model_copy(update={"weight": weight})
    goal, file = middling(draft, context, plain, share=0.9), tmp_path / "log.json"
    whole = search(draft, goal, context.with_config(plain))[1]
    config = plain.model_copy(update={"search_log": file})
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        search(draft, goal, context.with_config(config))
    assert len(json.loads(file.read_text())["attempts"]) == 2
    monkeypatch.undo()
    done = stop_after(monkeypatch, 100)
    found = search(draft, goal, context.with_config(config))[1]
    assert found.chosen.key == whole.chosen.key
    assert len(done) == len(whole.attempts) - 2
    assert search(draft, goal, context.with_config(config))[1].attempts == found.attempts
    assert len(done) == len(whole.attempts) - 2
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]


def test_attempts_of_another_search_are_refused(tmp_path):
    draft, context = bench_for()
    config = CONFIG.model_copy(update={"search_log": tmp_path / "log.json"})
    search(draft, Goal("sqnr", 5), context.with_config(config))
    content = config.search_log.read_bytes()
    for other, goal in ((nudged(draft), Goal("sqnr", 5)), (draft, Goal("agreement", 0.1))):
        with pytest.raises(ConfigError, match="another"):
            search(other, goal, context.with_config(config))
    assert config.search_log.read_bytes() == content


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": ""}', "\x00\xff"])
def test_a_file_that_is_something_else_stays_as_it_is(tmp_path, content):
    draft, context = bench_for()
    file = tmp_path / "log.json"
    file.write_text(content, "latin-1")
    with pytest.raises(ConfigError, match="does not hold the attempts"):
        search(draft, Goal("sqnr", 5), context.with_config(CONFIG.model_copy(update={"search_log": file})))
    assert file.read_text("latin-1") == content


@pytest.mark.parametrize("weight", [None, "int4"])
def test_an_interrupt_keeps_the_best_if_it_reaches_the_goal(monkeypatch, weight):
    draft, context = bench_for(weight=weight)
    config = CONFIG.model_copy(update={"weight": weight})
    goal = middling(draft, context, config, share=0.9)
    whole = search(draft, goal, context.with_config(config))[1]
    first = next(n for n, _ in enumerate(whole.attempts))
    outcomes = []
    for count in range(1, len(whole.attempts)):
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            try:
                found, result = search(draft, goal, context.with_config(config))
            except KeyboardInterrupt:
                outcomes.append("raised")
                continue
        assert context.evaluator.evaluate(found.quantized()).sqnr >= goal.at_least
        assert result.interrupted
        assert "SEARCH INTERRUPTED" in result.warnings[0]
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
    assert floats == before.plan.integer_nodes.keys() - result.plan.integer_nodes.keys()
    assert 0 < len(floats) < 0.25 * len(before.plan.integer_nodes)
    assert result.search.curve[0].floats == ()
    assert all(attempt.value >= limit for attempt in result.search.curve if len(attempt.floats) > len(floats))


def test_a_real_model_of_four_bits_gets_eight_for_some_layers(resnet20, tmp_path):
    feeds = [{"input": x[None]} for x in np.random.default_rng(0).normal(size=(20, 3, 32, 32)).astype("f4")]
    config = QuantConfig(weight="int4", correct="bias", method="minmax")
    goal = Goal("sqnr", 22)
    result = onnxq.quantize_static(resnet20, tmp_path / "o.onnx", feeds, config=config, goal=goal)
    chosen = result.search.chosen
    assert result.quality.sqnr >= 22 > result.search.curve[0].sqnr
    assert chosen.floats == ()
    assert 0 < len(chosen.widened) < len(result.plan.integer_nodes)
    sizes = [attempt.size for attempt in result.search.curve]
    assert sizes == sorted(sizes)
    assert sizes[0] < chosen.size < 0.8 * sizes[-1]
