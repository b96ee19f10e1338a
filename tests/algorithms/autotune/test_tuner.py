"""The whole tuning, with times that are made up: nothing here depends on how fast the machine is."""

from dataclasses import replace

import numpy as np
import pytest
from benches import CHAIN, bench_for

from onnxq.algorithms.autotune import profile as real
from onnxq.algorithms.autotune import tuner
from onnxq.core.config import QuantConfig

CONFIG = QuantConfig(method="minmax", threads=1)


@pytest.fixture
def context():
    return bench_for(CHAIN)


@pytest.fixture
def machine(monkeypatch):
    """A machine on which each kernel takes what ``costs`` says, by its operator or its name, else 1 µs."""
    costs = {}
    calls = []

    def price(kernel):
        return next((c for key, c in costs.items() if key in (kernel.op_type, kernel.name)), 1.0) * 1e-6

    def timed(profile):
        kernels = tuple(replace(kernel, seconds=price(kernel)) for kernel in profile.kernels)
        return real.Profile(sum(kernel.seconds for kernel in kernels), kernels)

    def profiles(models, sample, **options):
        calls.append(len(models))
        return [timed(one) for one in real.profiles(models, sample, **{**options, "seconds": 0.0})]

    def in_turns(sessions, sample, **options):
        found = [timed(one).seconds for one in sessions]
        return np.tile(found, (40, 1)) * np.random.default_rng(0).uniform(1, 1.01, (40, len(found)))

    def open_session(model, **options):
        (one,) = real.profiles([model], sample_of[0], seconds=0.0, threads=1, providers=options["providers"])
        return one

    sample_of = []
    monkeypatch.setattr(tuner, "profiles", profiles)
    monkeypatch.setattr(tuner, "time_interleaved", in_turns)
    monkeypatch.setattr(tuner, "open_session", open_session)
    return costs, sample_of


def run(context, machine, **prices):
    draft, workbench = context
    costs, sample_of = machine
    costs |= prices
    sample_of.append(workbench.fit[0])
    return tuner.tune(draft, workbench.fit[0], workbench.with_config(CONFIG), tuner.EFFORTS["full"])


def test_all_in_integers_where_that_is_fastest(context, machine):
    tuning = run(context, machine, Conv=50.0, FusedConv=50.0, QLinearConv=1.0)
    assert tuning.floats == {}
    assert tuning.chosen is tuning.contestants[0]
    assert tuning.chosen.gain > 2
    assert tuning.warnings == ()


def test_all_float_where_integers_only_lose(context, machine):
    tuning = run(context, machine, QLinearConv=50.0, QLinearAdd=50.0, QGemm=50.0, MatMulIntegerToFloat=50.0)
    assert tuning.chosen is None
    assert tuning.floats.keys() == context[0].plan.integer_nodes.keys()
    (doubt,) = tuning.warnings
    assert "INT8 IS NOT SIGNIFICANTLY FASTER" in doubt
    assert any(
        reason.startswith("slower in integers on this machine: 0.05") for reason in tuning.floats.values()
    )


def test_one_slow_kernel_alone_is_float(context, machine):
    draft = context[0]
    slow = next(node.name for node in draft.reference.graph if node.op_type == "GlobalAveragePool")
    prices = dict.fromkeys(("Conv", "FusedConv"), 50.0) | {"QLinearGlobalAveragePool": 90.0}
    tuning = run(context, machine, **prices)
    assert tuning.chosen is not tuning.contestants[0]
    assert slow in tuning.floats
    assert tuning.floats[slow].startswith("slower in integers on this machine: 0.09")
    assert tuning.floats[slow].endswith(" ms instead of 0.001 ms")
    convs = {node.name for node in draft.reference.graph if node.op_type == "Conv"}
    assert not convs & tuning.floats.keys()


def test_a_short_look_tells_whether_integers_are_fast(context, machine):
    draft, workbench = context
    costs, sample_of = machine
    sample_of.append(workbench.fit[0])
    prices = dict.fromkeys(("Conv", "FusedConv"), 500.0)
    for slow, wanted in (({}, True), ({"QLinearConv": 450.0}, False), ({"QLinearConv": 900.0}, False)):
        costs |= {**prices, **slow}
        assert tuner.is_fast(draft, workbench.fit[0], workbench.with_config(CONFIG)) is wanted


def test_what_takes_no_time_at_all_is_fast(context, machine):
    draft, workbench = context
    costs, sample_of = machine
    sample_of.append(workbench.fit[0])
    costs |= {"QLinearConv": 9.0}
    assert tuner.is_fast(draft, workbench.fit[0], workbench.with_config(CONFIG))


@pytest.mark.parametrize(
    ("gains", "sure", "wanted"),
    [
        ((0.99, 0.98), False, 0),  # the smaller file, at the same speed
        ((0.90, 0.97), False, None),
        ((1.10, 1.30), False, 1),
        ((1.29, 1.30), False, 0),
        ((1.01, 1.0), True, None),
        ((1.10, 1.30), True, 1),
    ],
)
def test_integers_need_not_be_faster_unless_speed_is_asked_for(gains, sure, wanted):
    rounds = [np.tile([1.0, 1 / gains[0], 1 / gains[1]], (30, 1))] * 3
    names = [frozenset(), frozenset("a")]
    contestants = {i + 1: tuner._candidate(names[i], rounds, i + 1, 0) for i in range(2)}
    effort = tuner.EFFORTS["full" if sure else "auto"]
    chosen = tuner._chosen(contestants, rounds, effort)
    assert chosen is (None if wanted is None else contestants[wanted + 1])


@pytest.mark.parametrize(("gains", "accepted"), [((1.03, 0.96, 1.03), True), ((1.03, 0.94, 1.03), False)])
def test_one_bad_round_of_a_busy_machine_does_not_decide(gains, accepted):
    rounds = [np.tile([1.0, 1 / each], (30, 1)) for each in gains]
    one = tuner._candidate(frozenset(), rounds, 1, 0)
    assert tuner._chosen({1: one}, rounds, tuner.EFFORTS["auto"]) is (one if accepted else None)


def test_the_search_keeps_to_its_time(context, machine):
    draft, workbench = context
    costs, sample_of = machine
    sample_of.append(workbench.fit[0])
    costs |= {"QLinearConv": 50.0}
    effort = replace(tuner.EFFORTS["auto"], seconds=0.0)
    tuning = tuner.tune(draft, workbench.fit[0], workbench.with_config(CONFIG), effort)
    assert len(tuning.contestants) == 1
