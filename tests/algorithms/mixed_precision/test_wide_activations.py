"""The rung between 8 bits and float: activations of 16 bits, where the target has them."""

import json
import math

import numpy as np
import onnx_ir as ir
import pytest
from benches import bench_for, nudged

from onnxq.algorithms.mixed_precision import noisy_nodes, replan
from onnxq.algorithms.mixed_precision.noisy_nodes import hold
from onnxq.algorithms.mixed_precision.priorities import stages
from onnxq.algorithms.mixed_precision.replan import Replanner
from onnxq.algorithms.mixed_precision.search import search
from onnxq.algorithms.mixed_precision.steps import FLOAT, Precision, Steps, keep_float, widen_activations
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.floor import Floor
from onnxq.core.goal import Goal
from onnxq.graph.qdq.insert_qdq import insert_qdq

UINT16 = ir.DataType.UINT16
QNN = QuantConfig(method="minmax", target="qnn")


@pytest.fixture
def qnn():
    """With enough samples that rounding makes the noise, not clipping of the few held-out samples."""
    draft, context = bench_for(count=200, target="qnn")
    return draft, context.with_config(QNN)


def sqnr(draft, context):
    return context.evaluator.evaluate(draft.quantized()).sqnr


def ends(draft, context):
    """The SQNR of the model, and of the model with 16 bits throughout."""
    wide = Replanner(draft, context)(widen_activations(draft.plan.integer_nodes, UINT16))
    return sqnr(draft, context), sqnr(wide, context)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_sixteen_bits_come_before_float(qnn, share):
    draft, context = qnn
    low, high = ends(draft, context)
    goal = Goal("sqnr", low + share * (high - low))
    found, result = search(draft, goal, context)
    chosen = result.chosen
    assert sqnr(found, context) >= goal.at_least
    assert chosen.floats == ()
    assert chosen.wide_activations == found.plan.widened_from(draft.plan)
    assert set(chosen.wide_activations.values()) == {"uint16"}
    assert 0 < len(chosen.wide_activations) <= len(draft.plan.integer_nodes)
    assert chosen.speed is None  # this machine does not run what the target runs
    make = Replanner(draft, context)
    for name in chosen.wide_activations:
        less = make(widen_activations(chosen.wide_activations.keys() - {name}, UINT16))
        kept = less.plan.widened_from(draft.plan) == chosen.wide_activations
        kept |= less.plan.conversions > found.plan.conversions + 1
        assert kept or sqnr(less, context) < goal.at_least


def test_what_sixteen_bits_do_not_reach_float_does(qnn):
    draft, context = qnn
    make, nodes = Replanner(draft, context), set(draft.plan.integer_nodes)
    few = [sqnr(make(keep_float(nodes - {name})), context) for name in nodes]
    goal = Goal("sqnr", (ends(draft, context)[1] + max(filter(math.isfinite, few))) / 2)
    found, result = search(draft, goal, context)
    assert sqnr(found, context) >= goal.at_least
    assert 0 < len(result.chosen.floats) < len(nodes)
    assert result.curve[0].wide_activations == {}
    costs = [attempt.cost for attempt in result.curve]
    assert costs == sorted(costs)


def test_what_nothing_reaches_is_told_with_the_best(qnn):
    with pytest.raises(ModelError, match=r"the best has sqnr .* in float, and \d with wider activations$"):
        search(qnn[0], Goal("sqnr", 300), qnn[1])


def test_the_noise_of_weights_stays_and_a_tensor_needs_all_that_quantize_it(qnn):
    draft, _ = qnn
    noises = dict.fromkeys(draft.plan.groups, 0.0) | {"w3": 0.9, "x": 0.1}
    wide, floats = stages(draft.reference, draft.plan, noises)
    assert wide[0].steps == {Precision("Conv_a", UINT16, "activation")}
    assert floats[0].steps == {Precision("Conv_d", FLOAT)}
    wide, _ = stages(draft.reference, draft.plan, {**noises, "t": 0.9})
    assert {step.node for step in wide[0].steps} == {"Add_s", "Conv_d"}
    assert {step.node for change in wide for step in change.steps} == set(draft.plan.integer_nodes)
    assert {step.form for change in wide for step in change.steps} == {UINT16}


def test_what_is_wide_already_is_no_step():
    draft, _ = bench_for(target="qnn", override="Conv_d: activation=uint16")
    wide, _ = stages(draft.reference, draft.plan, dict.fromkeys(draft.plan.groups, 0.1))
    assert {step.node for change in wide for step in change.steps} == (
        draft.plan.integer_nodes.keys() - {"Conv_d"}
    )


def test_weights_of_more_bits_come_first_and_both_may_be_wide(monkeypatch):
    steps = Steps({Precision("Conv_c", ir.DataType.UINT8), Precision("Conv_c", UINT16, "activation")})
    draft, context = bench_for(target="qnn")
    plan = Replanner(draft, context.with_config(QNN)).plan(steps)
    specs = {(p.consumer, p.input_index): p.spec.dtype for p in plan.points}
    assert specs["Conv_c", 0] == UINT16
    assert specs["Conv_c", 1] == ir.DataType.UINT8


def test_all_else_stays_as_it_is_and_nothing_runs_again(monkeypatch):
    draft, context = bench_for(target="qnn")
    draft = nudged(draft)
    monkeypatch.setattr(replan, "collect", lambda *_, **__: pytest.fail("the data was run again"))
    made = Replanner(draft, context.with_config(QNN))(widen_activations(["Conv_c"], UINT16))
    kept = made.plan.params.keys() & draft.plan.params.keys()
    assert kept == draft.plan.params.keys()
    for name in kept:
        np.testing.assert_array_equal(made.plan.params[name].scale, draft.plan.params[name].scale)
    for name, value in draft.model.graph.initializers.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(), made.model.graph.initializers[name].const_value.numpy()
        )


def test_the_bias_still_fits():
    """Its steps are as much finer as those of the input are."""
    text = """g (float[N,4] x) => (float[N,2] y) <float[4,2] w = {W}, float[2] b = {2e4, -6e3}, float[2,2] v>
    { a = Gemm (x, w, b)  r = Relu (a)  y = MatMul (r, v) }""".replace(
        "{W}", "{" + ", ".join(["0.005", "0.01"] * 4) + "}"
    )
    draft, context = bench_for(text, target="qnn")
    before = draft.plan
    made = Replanner(draft, context.with_config(QNN))(widen_activations(["Gemm_a"], UINT16)).plan
    (bias,) = made.biases
    assert 2e4 / (made.params[bias.input_group].scale * before.params[bias.weight_group].scale) > 2**31
    assert 2e4 / (made.params[bias.input_group].scale * made.params[bias.weight_group].scale) < 2**31


def test_a_goal_on_a_plan_that_converts_already(qnn):
    config = QNN.model_copy(update={"override": ("Conv_c: activation=uint16", "Add_s: activation=uint16")})
    draft, context = bench_for(count=200, target="qnn", override=config.override)
    context = context.with_config(config)
    assert any(point.converted_from for point in draft.plan.points)
    low, high = ends(draft, context)
    goal = Goal("sqnr", (low + high) / 2)
    found, result = search(draft, goal, context)
    assert sqnr(found, context) >= goal.at_least
    assert result.chosen.floats == ()
    assert not result.chosen.wide_activations.keys() & {"Conv_c", "Add_s"}


def test_a_log_from_before_there_were_wide_activations_is_read(qnn, tmp_path, monkeypatch):
    draft, context = qnn
    context = context.with_config(QNN.model_copy(update={"search_log": tmp_path / "log.json"}))
    low, high = ends(draft, context)
    goal = Goal("sqnr", (low + high) / 2)
    whole = search(draft, goal, context)[1]
    content = json.loads((tmp_path / "log.json").read_text())
    assert content["version"] == 3
    narrow = [one for one in content["attempts"] if not one.pop("wide_activations")]
    assert narrow
    old = {**content, "version": 2, "attempts": narrow}
    (tmp_path / "log.json").write_text(json.dumps(old))
    again = search(draft, goal, context)[1]
    assert again.attempts == whole.attempts
    assert len(json.loads((tmp_path / "log.json").read_text())["attempts"]) == len(whole.attempts)


def test_a_model_of_lower_opset_needs_no_other(qnn):
    draft, context = qnn
    assert draft.reference.graph.opset_imports[""] < 21
    made = Replanner(draft, context)(widen_activations(draft.plan.integer_nodes, UINT16))
    model = insert_qdq(made.model, made.plan)
    wide = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert {node.domain for node in wide} == {"com.microsoft"}
    assert sqnr(made, context) > sqnr(draft, context)


# --- The floor ---------------------------------------------------------------------------------


@pytest.fixture
def floored(qnn, monkeypatch):
    draft, context = qnn
    monkeypatch.setattr(type(context), "can_validate", True)
    monkeypatch.setattr(noisy_nodes, "GOOD_SQNR", 200.0)
    return draft, context


def test_the_floor_takes_sixteen_bits_first(floored):
    draft, context = floored
    low, high = ends(draft, context)
    better, rescue = hold(draft, Floor((low + high) / 2), context, 0.0)
    assert rescue.held
    assert rescue.floats == {}
    assert rescue.wide == better.plan.widened_from(draft.plan)
    assert len(rescue.wide) > 0
    assert better.plan.integer_nodes == draft.plan.integer_nodes


def test_what_sixteen_bits_do_not_hold_float_does(floored):
    draft, context = floored
    high = ends(draft, context)[1]
    better, rescue = hold(draft, Floor(high + 1), context, 0.0)
    assert rescue.floats
    assert rescue.floats.keys() == draft.plan.integer_nodes.keys() - better.plan.integer_nodes.keys()
    assert rescue.after > high or not rescue.held
