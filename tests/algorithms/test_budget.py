"""The time that corrections share: what is allowed by default, and what still fits."""

import pytest
from benches import bench_for

from onnxq.algorithms import budget as module
from onnxq.algorithms.budget import LEAST, LONG, RESCUE, SPEED, Budget, TooLongError, clock_of, time_limit
from onnxq.core.config import QuantConfig


@pytest.mark.parametrize(
    ("options", "bits", "spent", "seconds"),
    [
        ({}, None, 3.0, LEAST),
        ({}, None, 33.0, 33.0),
        ({}, 4, 33.0, LONG),
        ({"correct": ("bias", "adaround")}, None, 33.0, LONG),
        ({"time_limit": 5}, None, 33.0, 5.0),
        ({"time_limit": 0, "correct": ("adaround",)}, 4, 33.0, 0.0),
    ],
)
def test_the_limit_follows_what_was_spent_and_what_is_gained(options, bits, spent, seconds):
    draft, _ = bench_for(bits=bits)
    assert time_limit(QuantConfig(**options), draft.plan, spent) == seconds


@pytest.mark.parametrize(("options", "seconds"), [({}, 33.0 * RESCUE), ({"time_limit": 5}, 5.0)])
def test_a_useless_model_gets_more_time(options, seconds):
    draft, _ = bench_for()
    assert time_limit(QuantConfig(**options), draft.plan, 33.0, useless=True) == seconds


def test_what_fits_depends_on_the_time_that_has_passed():
    now = [100.0]
    budget = Budget(10.0, batch_seconds=2.0, clock=lambda: now[0])
    budget.check(batches=5)
    budget.check(batches=3, work=8 * SPEED, threads=2)
    now[0] = 103.0
    assert budget.left == 7.0
    with pytest.raises(TooLongError, match="would take about 8 s"):
        budget.check(batches=4)
    budget.check(batches=3, work=SPEED)


def test_other_processes_count_only_where_the_user_gave_a_limit(monkeypatch):
    wall, own = [50.0], [7.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: wall[0])
    monkeypatch.setattr(module.time, "process_time", lambda: own[0])
    limited, free, single = (
        clock_of(QuantConfig(**options)) for options in ({"time_limit": 9}, {"threads": 2}, {"threads": 1})
    )
    assert (limited(), free(), single()) == (50.0, 0.0, 0.0)
    wall[0], own[0] = 70.0, 11.0
    assert (limited(), free(), single()) == (70.0, 2.0, 4.0)
    own[0] = 90.0
    assert (limited(), free(), single()) == (70.0, 20.0, 20.0)


def test_without_a_limit_everything_fits():
    Budget(batch_seconds=1.0).check(batches=1e9, work=1e30)
