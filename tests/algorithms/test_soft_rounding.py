"""The loop of AdaRound on one layer, on tasks small enough to know what is best."""

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from onnxq.algorithms.soft_rounding import Task, check_torch, learned_levels
from onnxq.errors import ConfigError

pytest.importorskip("torch")

SHAPES = {"dense": (1, 12, 10), "grouped": (3, 4, 6), "depthwise": (6, 1, 9)}


def task(shape, limits=(-np.inf, np.inf), rows=400, lowest=-8, highest=7, seed=1):
    """Correlated inputs, and weights a few levels wide, rounded to nearest."""
    rng = np.random.default_rng(seed)
    groups, outputs, inputs = shape
    exact = rng.uniform(lowest, highest, shape).astype(np.float32)
    common = rng.normal(size=(groups, rows, 1)) + 1
    x = (common + 0.3 * rng.normal(size=(groups, rows, inputs))).astype(np.float32)
    scale = np.full(shape, 0.1, np.float32)
    bias = rng.normal(size=(groups, 1, outputs)).astype(np.float32)
    full = np.full(shape, 1, np.float32)
    return Task(
        exact=exact,
        levels=np.rint(exact),
        scale=scale,
        lowest=lowest * full,
        highest=highest * full,
        rows=x,
        wanted=(x @ (exact * scale).transpose(0, 2, 1) + bias).clip(*limits),
        bias=bias,
        limits=limits,
    )


@pytest.mark.parametrize(
    ("shape", "limits"),
    [
        (SHAPES["dense"], (-np.inf, np.inf)),
        (SHAPES["dense"], (0, np.inf)),
        (SHAPES["grouped"], (0, 2)),
        (SHAPES["depthwise"], (-np.inf, np.inf)),
    ],
    ids=["dense", "relu", "grouped, clip", "depthwise"],
)
def test_outputs_come_much_closer(shape, limits):
    given = task(shape, limits)
    levels = learned_levels(given, np.inf, 0, 1)
    assert given.error(levels) < 0.5 * given.error(given.levels)
    assert levels.shape == shape
    assert levels.dtype == np.float32
    assert abs(levels - given.exact).max() <= 1


def test_it_finds_nearly_the_best_of_all():
    given = task((1, 1, 8))
    below = np.floor(given.exact)
    least = min(given.error(below + np.reshape(ups, (1, 1, 8))) for ups in product((0, 1), repeat=8))
    nearest = given.error(given.levels)
    assert given.error(learned_levels(given, np.inf, 0, 1)) - least < 0.1 * (nearest - least)


def test_levels_stay_on_the_grid():
    given = task((1, 8, 8), lowest=-2, highest=1)
    given = replace(given, exact=given.exact * 2)  # half of them lie beyond
    levels = learned_levels(replace(given, levels=np.rint(given.exact).clip(-2, 1)), np.inf, 0, 1)
    assert set(np.unique(levels)) == {-2, -1, 0, 1}


def test_levels_far_from_the_weight_are_where_it_begins():
    """What was rounded with regard to other weights may be more than a level away."""
    given = task((1, 4, 6))
    moved = given.exact + np.array([2.0, -2.0, 0, 0, 0, 0], np.float32)
    far = replace(given, exact=moved)
    levels = learned_levels(far, np.inf, 0, 1)
    assert far.error(levels) <= far.error(far.levels)
    assert abs(levels - far.levels).max() <= 1


def test_the_same_seed_gives_the_same_levels():
    given = task((2, 6, 12), rows=600)
    one, same = (learned_levels(given, np.inf, 3, 1) for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_without_time_nothing_changes():
    given = task(SHAPES["dense"])
    assert learned_levels(given, 0, 0, 1) is given.levels


def test_with_little_time_levels_are_whole_all_the_same():
    given = task((1, 64, 64))
    levels = learned_levels(given, 1e-3, 0, 1)
    np.testing.assert_array_equal(levels, np.rint(levels))


def test_what_is_exact_stays():
    given = task(SHAPES["dense"])
    exact = replace(given, wanted=given.rows @ (given.levels * given.scale).transpose(0, 2, 1) + given.bias)
    assert exact.error(exact.levels) == 0
    assert learned_levels(exact, np.inf, 0, 1) is exact.levels


def test_torch_is_left_as_it_was():
    import torch

    before = torch.get_num_threads(), torch.random.get_rng_state()
    learned_levels(task(SHAPES["dense"]), np.inf, 0, before[0] + 1)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_a_missing_torch_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"onnxq\[torch\]"):
        check_torch()
